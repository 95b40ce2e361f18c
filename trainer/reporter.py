"""How a run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def untold(seconds: float | None) -> None:
    """Report no time."""
    del seconds


@dataclass(frozen=True)
class Reporter:
    """How a run reports: a line of text, progress (what, done, of how many), and the seconds left
    of the whole run (None: not known), which come before the progress that they go with."""

    line: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    left: Callable[[float | None], None] = untold
