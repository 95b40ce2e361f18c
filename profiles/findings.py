"""The parts of errors: findings, each with what, where, got, allowed and fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from profiles.text import one_line

_MOST_LINES = 100  # of an error


@dataclass(frozen=True)
class Finding:
    """One thing wrong with an input: what, where, got, allowed, fix."""

    where: str
    what: str
    got: str = ""
    fix: str = ""

    def __str__(self) -> str:
        got = f" (got {self.got})" if self.got else ""
        fix = f"\n    hint: {self.fix}" if self.fix else ""
        return one_line(f"{self.where}: {self.what}{got}") + fix


class PlanError(ValueError):
    """A plan that cannot run; `findings` holds every reason."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"  - {finding}" for finding in self.findings[:_MOST_LINES]]
        more = len(self.findings) - len(lines)
        super().__init__("\n".join(lines + [f"  - … and {more} more"] * bool(more)))
