"""Errors in data: findings, the exception that carries them, and the report of a check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from profiles.files import reason
from profiles.findings import Finding as AnyFinding
from profiles.findings import listed
from profiles.text import brief, one_line


@dataclass(frozen=True)
class Finding(AnyFinding):
    """One error in a file or folder, and how to fix it; as text one line, as in lists of them.

    `entry` is the entry that would have to be left out; None if it is not a single one.
    """

    entry: str | None = None

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.what}. Fix: {self.fix}.")


class DataError(ValueError):
    """The data cannot be used as it is; `findings` has all reasons, `str()` the first hundred."""

    def __init__(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        if isinstance(findings, str):
            # torch re-raises a worker's exception as type(message) and falls back on RuntimeError
            # at a TypeError; without this a message would be split into its letters.
            raise TypeError("DataError takes a sequence of Finding, not a string")
        super().__init__(tuple(findings))
        self.findings: tuple[Finding, ...] = tuple(findings)
        self.hints: tuple[str, ...] = tuple(hints)  # lines for all of them together

    def __str__(self) -> str:
        return "\n".join([*listed(self.findings), *(f"    {h}" for h in self.hints)])


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
        listed = re.match(r"\w*\[\d+\]|line \d+(?=:)", what)
        entry = self.entry or (f"{self.path}: {listed[0]}" if listed else None)
        text = f"{what}: {shown}; allowed: {allowed}"
        self.findings.append(Finding(str(self.path), text, fix=fix, entry=entry))
