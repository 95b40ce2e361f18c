"""Leaves broken entries out, up to the number that the user allows; counts and lists them.

A whole file or folder cannot be left out. By default nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from profiles.files import write_whole
from profiles.own_files import MARK, refuse_others
from profiles.skipping import OPTION
from profiles.text import counted
from trainer.data.findings import DataError, Finding

LIST = "skipped.txt"


def entries(findings: Sequence[Finding]) -> set[str]:
    """The broken entries that findings are about."""
    return {finding.entry for finding in findings if finding.entry is not None}


def may_be_left_out(findings: Sequence[Finding], most: int) -> bool:
    """Whether only entries are broken, and at most `most` of them."""
    return all(one.entry is not None for one in findings) and len(entries(findings)) <= most


def accept(
    findings: Sequence[Finding],
    most: int,
    hints: Sequence[str] = (),
    rest: str = "",
    *,
    decoded: bool = True,
) -> tuple[Finding, ...]:
    """The findings, if their entries may be left out; else raises DataError with all of them.

    `rest`: why what is left would not do; empty if it may do.
    """
    if may_be_left_out(findings, most):
        return tuple(findings)
    raise DataError(findings, (*hints, *hint(findings, most, rest, decoded=decoded)))


def hint(
    findings: Sequence[Finding], most: int, rest: str = "", *, decoded: bool = True
) -> list[str]:
    """A line that says how to use the rest, or why that cannot be; none if something else is wrong.

    `rest`: why what is left would not do; empty if it may do. `decoded`: whether every picture was.
    """
    if not findings or any(finding.entry is None for finding in findings):
        return []
    count = len(entries(findings))
    these = "this broken entry" if count == 1 else f"these {count} broken entries"
    if rest:
        return [f"note: to leave {these} out would not help: {rest}"]
    more = f" (not just {most})" if most else ""
    found = "" if decoded else "; a picture that cannot be decoded comes on top (--check-data)"
    return [f"hint: {OPTION} {count}{more}, or all, leaves {these} out{found}"]


def left_out_line(findings: Sequence[Finding], path: Path | None = None) -> str:
    """How many entries were left out, and where they are listed, if anywhere."""
    what = counted(len(entries(findings)), "broken entry", "broken entries")
    return f"left out {what}" + (f", listed in {path}" if path is not None else "")


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """Write a line for each finding about the entries left out. Raises OSError."""
    refuse_others(path, "a list")
    text = "".join(f"{one}\n" for one in (f"# {MARK}", *findings))
    write_whole(path, text.encode(errors="backslashreplace"))


@dataclass
class SkippedEntries:
    """How many broken entries a command may leave out, and which it did.

    known: paths from `root` of the entries that an earlier start found by decoding everything; they
        are left out again, and nothing is decoded.
    """

    most: int = 0
    left_out: list[Finding] = field(default_factory=list)
    known: frozenset[str] | None = None
    root: Path = Path()

    @property
    def decodes(self) -> bool:
        """Whether every picture must be decoded, to find the broken ones."""
        return self.most > 0 and self.known is None

    def knows(self, entry: str) -> bool:
        """Whether this entry was left out before."""
        return bool(self.known) and self.place(entry) in (self.known or ())

    def place(self, entry: str) -> str:
        """The entry's path from `root`, which does not change when the data are moved."""
        return os.path.relpath(entry, self.root)

    def places(self) -> set[str]:
        """All entries left out, by their paths from `root`."""
        return {self.place(entry) for entry in entries(self.left_out)} | (self.known or set())

    def accept(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        """Leave these entries out; raises DataError with all findings if they are too many."""
        accept([*self.left_out, *findings], self.most, hints, decoded=self.most > 0)
        self.left_out += findings
