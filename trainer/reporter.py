"""How a run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # what, how many are done, of how many


def unshown(seconds: float | None) -> None:
    """Report no time."""
    del seconds


@dataclass(frozen=True)
class Reporter:
    """How a run reports: a line of text, progress, and the seconds left of the whole run (None: not
    known), which come before the progress that they go with."""

    line: Callable[[str], None]
    progress: Progress
    left: Callable[[float | None], None] = unshown

    def of_one_of(self, processes: int) -> Reporter:
        """The same for the first of several processes: its progress is that of its own part."""
        if processes == 1:
            return self

        def own_part(what: str, done: int, total: int) -> None:
            self.progress(f"{what}, the first of {processes} processes", done, total)

        return replace(self, progress=own_part)
