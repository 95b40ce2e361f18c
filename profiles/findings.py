"""The parts of errors: findings, each with what, where, got, allowed and fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from profiles.text import counted, one_line

_MOST = 100  # in one error


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


def listed(findings: Sequence[Finding], mark: str = "") -> list[str]:
    """The first hundred as text, each behind `mark`, and how many more there are."""
    more = len(findings) - _MOST
    rest = [f"{mark}… and {counted(more, 'more finding')}"] * (more > 0)
    return [f"{mark}{finding}" for finding in findings[:_MOST]] + rest


class PlanError(ValueError):
    """A plan that cannot run; `findings` holds every reason."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(listed(self.findings, "  - ")))
