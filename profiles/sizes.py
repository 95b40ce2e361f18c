"""Bytes as text, in GiB and MiB; the code itself counts in bytes."""

from __future__ import annotations

import re

from profiles.text import brief

MIB, GIB = 2**20, 2**30
LARGEST_CARD = 2**44  # 16 TiB: anything above is a wrong unit

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+|,\d\d?)?) *(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE)
_UNITS = {"": GIB, "g": GIB, "gib": GIB, "gb": 10**9, "m": MIB, "mib": MIB, "mb": 10**6,
          "t": 2**40, "tib": 2**40, "tb": 10**12}  # fmt: skip
_MOST_PLAIN = 512  # GiB; a larger number without a unit is one of MiB, as nvidia-smi prints them


def gib(size: int) -> str:
    """`size` bytes as text, in GiB."""
    return f"{size / GIB:.2f} GiB"


def mib(size: int) -> str:
    """`size` bytes as text, in whole MiB."""
    return f"{size / MIB:.0f} MiB"


def parse_size(text: str) -> int:
    """Bytes from a size as people type it: 8GiB, 8 GB, 8G, 8192MiB, 7,5; a plain number is GiB.

    TB, GB and MB are powers of ten, as in a data sheet; T, G and M stand for TiB, GiB and MiB, as
    in free -h.
    Raises ValueError.
    """
    match = _SIZE.fullmatch(text.replace("\u00a0", " ").strip())
    if match is None or match["unit"].lower() not in _UNITS:
        thousands = re.search(r"\d,\d{3}(?!\d)", text) is not None
        fix = "write thousands without a comma" if thousands else "give a size such as 8GiB"
        raise ValueError(f"got {brief(text)}; {fix} (units: GiB, MiB, TiB, GB, MB, TB; none: GiB)")
    number = float(match["number"].replace(",", "."))
    if not match["unit"] and number > _MOST_PLAIN:
        fix = f"did you mean {brief(text.strip() + 'MiB')[1:-1]}?"
        raise ValueError(f"got {brief(text)}: a number without a unit counts GiB; {fix}")
    size = number * _UNITS[match["unit"].lower()]
    if not 1 <= size <= LARGEST_CARD:
        raise ValueError(f"got {brief(text)}; give more than 0 and at most 16384GiB")
    return round(size)
