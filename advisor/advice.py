"""The Advice: the answer to "what can I train on this card?", with its reasons."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from advisor.choice.candidate import Candidate, Reason, Speed
from advisor.cost.disk import Disk
from advisor.cost.duration import Duration
from advisor.cost.several import Several
from advisor.machine.budget import Budget, Bytes
from advisor.machine.gpu import Gpu, Machine
from advisor.memory.forecast import Forecast
from advisor.request import Request
from profiles.exits import EXIT_FAILED, EXIT_UNKNOWN
from profiles.findings import Finding
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.records import Frozen
from profiles.tested import Verdict

EXIT_CODES: dict[Verdict, int] = {
    "FITS": 0, "TIGHT": 0, "OOM": EXIT_FAILED, "SPILLS": EXIT_FAILED, "UNKNOWN": EXIT_UNKNOWN,
}  # fmt: skip


class Advice(Frozen):
    """What to train, how, on what, and why."""

    schema_version: Literal[2] = 2
    verdict: Verdict
    summary: str = Field(description="the answer in one line")
    model: str
    plan: Plan | None = Field(None, description="None when nothing can be said")
    command: str | None = Field(None, description="trains with the plan; None if it cannot run")
    environment: dict[str, str] = Field(
        default_factory=dict, description="to be set before torch is imported"
    )
    gpu: Gpu | None = Field(None, description="the chosen card, real or what-if")
    what_if: bool = Field(False, description="the card was named and is not in this machine")
    budget: Budget | None = None
    needs: Bytes | None = Field(None, description="the run's pool at most; None = unknown")
    parts: dict[str, int] = Field(
        default_factory=dict,
        description="what the pool holds at its peak, in bytes that add up "
        "to needs: of a step, or all as caching where building the feature cache takes more",
    )
    host_bytes: int | None = Field(None, description="the run's host memory at most")
    text_tokens: int | None = Field(None, description="of the longest sample assumed")
    counted_by: str = Field("", description="which tokenizer counted a data set's text, if any")
    speed: Speed | None = None
    duration: Duration | None = Field(None, description="of the training; None = unknown card")
    several: Several | None = Field(
        None, description="the training on one card and on more; None = one card is meant"
    )
    disk: Disk | None = Field(None, description="from the download to the last checkpoint")
    largest_micro_batch: int | None = Field(None, description="that fits with all else as planned")
    reasons: tuple[Reason, ...] = ()
    considered: tuple[Candidate, ...] = Field((), description="the chosen or nearest one first")
    ladder: tuple[Candidate, ...] = Field((), description="plans to fall back on, in order")
    prefer: Preference = Field("usual", description="the order in which plans were preferred")
    alternatives: dict[str, Candidate] = Field(
        default_factory=dict, description="what other orders of preference would choose"
    )
    better: Candidate | None = Field(None, description="the next better plan, too large here")
    better_card_gib: int | None = Field(None, description="the smallest usual card for it")
    forecast: Forecast | None = Field(None, description="of this very plan, where one was made")
    findings: tuple[Finding, ...] = Field((), description="what the user should know or fix")
    machine: Machine

    @property
    def exit_code(self) -> int:
        """0 fits, 1 does not fit, 3 cannot decide."""
        return EXIT_CODES[self.verdict]


def undecided(request: Request, model: str, what: str, fix: str) -> Advice:
    return Advice(
        verdict="UNKNOWN",
        summary=f"{model}: {what}",
        model=model,
        what_if=request.what_if,
        findings=(*request.table.findings, Finding(model, what, fix=fix)),
        machine=request.machine,
    )
