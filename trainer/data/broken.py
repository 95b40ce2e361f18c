"""Leaving broken entries out: at most as many as the user allows, counted and listed.

What is wrong with a whole file or folder cannot be left out. Without leave nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from profiles.skipping import OPTION
from profiles.text import counted
from trainer.data.findings import DataError, Finding

LIST = "skipped.txt"


def entries(findings: Sequence[Finding]) -> set[str]:
    """The broken entries that findings are about."""
    return {finding.entry for finding in findings if finding.entry is not None}


def may_be_left_out(findings: Sequence[Finding], most: int) -> bool:
    """Whether all that is broken are entries, and no more than may be left out."""
    return all(one.entry is not None for one in findings) and len(entries(findings)) <= most


def accept(
    findings: Sequence[Finding], most: int, hints: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """What is left out; DataError with all findings where it cannot be, or may not be."""
    if may_be_left_out(findings, most):
        return tuple(findings)
    raise DataError(findings, (*hints, *hint(findings, most)))


def hint(findings: Sequence[Finding], most: int) -> list[str]:
    """One line on how the rest can be used; none where leaving entries out would not help."""
    if not findings or any(finding.entry is None for finding in findings):
        return []
    count = len(entries(findings))
    these = "this broken entry" if count == 1 else f"these {count} broken entries"
    more = f" (not just {most})" if most else ""
    return [f"hint: {OPTION} {count}{more}, or all, leaves {these} out"]


def left_out_line(findings: Sequence[Finding], path: Path | None = None) -> str:
    """How many entries were left out, and where they are listed, if they are."""
    what = counted(len(entries(findings)), "broken entry", "broken entries")
    return f"left out {what}" + (f", listed in {path}" if path is not None else "")


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """A line for each finding about what was left out."""
    text = "".join(f"{one}\n" for one in findings)
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


@dataclass
class SkippedEntries:
    """How many broken entries a command may leave out, and which it did.

    `known`: those that were found by decoding everything before, by their path from `root`: they
    are left out again, and nothing is decoded.
    """

    most: int = 0
    left_out: list[Finding] = field(default_factory=list)
    known: frozenset[str] | None = None
    root: Path = Path()

    @property
    def decodes(self) -> bool:
        """Whether every picture is to be decoded, to find those that cannot be."""
        return self.most > 0 and self.known is None

    def knows(self, entry: str) -> bool:
        """Whether this entry was left out before."""
        return bool(self.known) and self.place(entry) in (self.known or ())

    def place(self, entry: str) -> str:
        """The entry by its path from `root`, which stays when the data are moved."""
        return os.path.relpath(entry, self.root)

    def places(self) -> set[str]:
        """All that was left out, by their paths from `root`."""
        return {self.place(entry) for entry in entries(self.left_out)} | (self.known or set())

    def accept(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        """Leave these out; DataError with all of them where that is too much."""
        accept([*self.left_out, *findings], self.most, hints)
        self.left_out += findings
