"""How a run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # what, how many are done, of how many


@dataclass(frozen=True)
class Reporter:
    """How a run reports: a line of text, and progress."""

    line: Callable[[str], None]
    progress: Progress
