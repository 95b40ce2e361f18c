"""How a run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # what, how many are done, of how many


def untold(seconds: float | None) -> None:
    """Report no time."""
    del seconds


@dataclass(frozen=True)
class Reporter:
    """How a run reports: a line of text, progress, and the seconds left of the whole run (None: not
    known), which come before the progress that they go with."""

    line: Callable[[str], None]
    progress: Progress
    left: Callable[[float | None], None] = untold
