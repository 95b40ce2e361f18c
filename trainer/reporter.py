"""How a run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reporter:
    """How a run reports: a line of text, and progress (what, done, of how many)."""

    line: Callable[[str], None]
    progress: Callable[[str, int, int], None]
