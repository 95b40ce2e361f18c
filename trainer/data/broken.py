"""Leaving broken entries out: at most as many as the user allows, counted and listed.

What is wrong with a whole file or folder cannot be left out. Without leave nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.reasonseg import DataError, Finding

ALL = 2**53 - 1  # more entries than any data set has
OPTION = "--skip-broken"
LIST = "skipped.txt"
VARIABLE = "LISA_SKIP_BROKEN"  # tells the processes that lisa-train asks about the data


def read_most(text: str | None) -> int:
    """How many broken entries may be left out, of the option's text. Raises ValueError."""
    if text is None:
        return 0
    if text.strip().lower() == "all":
        return ALL
    if text.strip().isascii() and text.strip().isdecimal():
        return min(int(text), ALL) if len(text) < 20 else ALL
    raise ValueError(f"{OPTION}: got {text!r}; allowed: a number of entries, or all")


def entries(findings: Sequence[Finding]) -> set[str]:
    """The broken entries that findings are about."""
    return {finding.entry for finding in findings if finding.entry is not None}


def can_go(findings: Sequence[Finding], most: int) -> bool:
    """Whether all that is broken are entries, and no more than may be left out."""
    return all(one.entry is not None for one in findings) and len(entries(findings)) <= most


def settle(
    findings: Sequence[Finding], most: int, hints: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """What is left out; DataError with all findings where it cannot be, or may not be."""
    if can_go(findings, most):
        return tuple(findings)
    raise DataError(findings, (*hints, *hint(findings, most)))


def hint(findings: Sequence[Finding], most: int) -> list[str]:
    """One line on how the rest can be used; none where leaving entries out would not help."""
    if not findings or any(finding.entry is None for finding in findings):
        return []
    count = len(entries(findings))
    more = f" (not just {most})" if most else ""
    return [f"hint: {OPTION} {count}{more}, or all, leaves these {count} broken entries out"]


def told(findings: Sequence[Finding], path: Path) -> str:
    """How many entries were left out, and where they are listed."""
    return f"left out {len(entries(findings))} broken entries, listed in {path}"


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """A line for each finding about what was left out."""
    text = "".join(f"{one}\n" for one in findings)
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def announce(most: int) -> None:
    """Let the processes that look at the data for this one leave out as much."""
    os.environ.pop(VARIABLE, None)
    if most:
        os.environ[VARIABLE] = str(most)


@dataclass
class Leave:
    """How many broken entries a command may leave out, and which it did."""

    most: int = 0
    left_out: list[Finding] = field(default_factory=list)

    def settle(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        """Leave these out; DataError with all of them where that is too much."""
        settle([*self.left_out, *findings], self.most, hints)
        self.left_out += findings
