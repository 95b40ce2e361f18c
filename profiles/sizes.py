"""Bytes as text, in GiB and MiB; the code itself counts in bytes."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30


def gib(size: int) -> str:
    """`size` bytes as text, in GiB."""
    return f"{size / GIB:.2f} GiB"


def mib(size: int) -> str:
    """`size` bytes as text, in whole MiB."""
    return f"{size / MIB:.0f} MiB"
