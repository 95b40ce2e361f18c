"""What the choice is made of: a plan compared with the budget, its speed, and the reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from advisor.machine.budget import Basis, Bytes
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.tested import Verdict


class Reason(Frozen):
    """Why a setting has its value."""

    setting: str
    value: str
    because: str
    basis: Basis


class Speed(Frozen):
    """Samples per second in training."""

    samples_per_second: float
    basis: Basis
    source: str = Field(description="the card that it is for, and how it was found")


class Candidate(Frozen):
    """One plan compared with the budget."""

    plan: Plan
    needs: Bytes = Field(description="of the allocator's pool, at most")
    host_bytes: int = Field(description="resident set of the process")
    speed: Speed
    verdict: Verdict
    why_not: str = Field("", description="why it was not chosen; empty for the chosen one")


class Weighed(NamedTuple):
    """What a Candidate says, of one of the hundreds of plans that a choice is made among."""

    plan: Plan
    needs: Bytes
    host_bytes: int
    speed: Speed
    verdict: Verdict
    why_not: str

    def checked(self) -> Candidate:
        """The record, which checks that the plan can run: a family copies it unchecked."""
        return Candidate(**self._asdict())


@dataclass(frozen=True)
class Scales:
    """How plans are weighed: what one needs on the card and the host, and how fast it trains."""

    needs: Callable[[Plan], tuple[Bytes, int] | None]
    speed: Callable[[Plan], Speed]


@dataclass(frozen=True)
class Choice:
    """The chosen plan, or the smallest if none fits, and the plans around it."""

    best: Candidate
    considered: tuple[Candidate, ...]
    ladder: tuple[Candidate, ...] = ()
    better: Candidate | None = None  # the next better plan, which does not fit
    alternatives: dict[str, Candidate] = field(default_factory=dict)  # by the order of preference
