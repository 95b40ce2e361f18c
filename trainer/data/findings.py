"""Errors in data: findings, the exception that carries them, and the report of a check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from profiles.files import reason
from profiles.findings import Finding as AnyFinding
from profiles.findings import listed
from profiles.text import brief, one_line, some

_PLACE = re.compile(r"\w*\[\d+\]|([^:]+\.txt: )?line \d+(?=:)")  # of an entry in a file
_NAMED = 10  # of the places of findings that are alike


@dataclass(frozen=True)
class Finding(AnyFinding):
    """One error in a file or folder, and how to fix it; as text one line, as in lists of them.

    `entry` is the entry that would have to be left out; None if it is not a single one.
    """

    entry: str | None = None

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.what}. Fix: {self.fix}.")

    @property
    def place(self) -> str:
        """The entry of a list in the file that it is about, as in `Report.add`; or empty."""
        found = _PLACE.match(self.what)
        return found[0] if found else ""


@dataclass(frozen=True)
class Alike(Finding):
    """A finding that others in the same file repeat, in all but their place there."""

    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" {len(self.others)} more alike: {some(self.others, _NAMED)}."
        return super().__str__() + (more if self.others else "")


def grouped(findings: Sequence[Finding]) -> list[Alike]:
    """The findings without repetitions: those that differ only in their place are joined."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        kind = re.sub(r"^.*: |[\d\[\]]", "", one.place)
        key = one.where, kind, one.what[len(one.place) :], one.fix
        groups.setdefault(key, []).append(one)
    return [Alike(first.where, first.what, first.got, first.fix, first.entry,
                  tuple(one.place for one in rest))
            for first, *rest in groups.values()]  # fmt: skip


class DataError(ValueError):
    """The data cannot be used as it is; `findings` has all reasons, `str()` the first hundred.

    What is repeated in a file is said there once.
    """

    def __init__(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        if isinstance(findings, str):
            # torch re-raises a worker's exception as type(message) and falls back on RuntimeError
            # at a TypeError; without this a message would be split into its letters.
            raise TypeError("DataError takes a sequence of Finding, not a string")
        super().__init__(tuple(findings))
        self.findings: tuple[Finding, ...] = tuple(findings)
        self.hints: tuple[str, ...] = tuple(hints)  # lines for all of them together

    def __str__(self) -> str:
        return "\n".join([*listed(grouped(self.findings)), *(f"    {h}" for h in self.hints)])


@dataclass
class Report:
    """Collects the findings about one file.

    `entry`: the one entry that all of them are about. Without it, `annotations[5].id` is about
    that entry of the list, and `file` about the whole file.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    entry: str | None = None

    def add(self, what: str, got: object, allowed: str, fix: str) -> None:
        """Add a finding: what is wrong, the value found, the values allowed, and the fix.

        An error instead of a value: what kept it from being read.
        """
        if isinstance(got, Exception):
            shown = f"cannot be read: {reason(got)[:200]}"
        else:
            shown = "got nothing" if got is None else f"got {brief(got, 100)}"
        listed = _PLACE.match(what)
        entry = self.entry or (f"{self.path}: {listed[0]}" if listed else None)
        text = f"{what}: {shown}; allowed: {allowed}"
        self.findings.append(Finding(str(self.path), text, fix=fix, entry=entry))
