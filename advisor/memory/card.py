"""A card with its budget, and the forecasts that are made for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.machine.budget import (
    budget_of,
)
from advisor.machine.cuda_context import OTHERS, Context, context_of, measure_context
from advisor.machine.gpu import Machine
from advisor.machine.target import Target, gpu_for
from advisor.memory.forecast import Forecast, counted_by, forecast
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan


@dataclass(frozen=True)
class Card:
    """The card that a forecast is judged by; no cap where there is none."""

    title: str
    cap_bytes: int | None = None
    margin_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    context: Context = OTHERS
    host_bytes: int | None = None


def card_for(machine: Machine, target: Target | None = None, measure: bool = False) -> Card:
    """This machine's best card, or `target`, with what a run's pool may take there.

    `measure` has this machine's context measured where it was not. Raises RehearsalFailed.
    """
    gpu = gpu_for(machine, target)
    if measure and gpu is not None and target is None:
        measure_context(gpu, machine)
    budget = budget_of(gpu, machine, target is not None) if gpu is not None else None
    if gpu is None or budget is None:
        return Card("no card")
    return Card(
        title=gpu.name,
        cap_bytes=budget.cap_bytes,
        margin_bytes=budget.margin.bytes,
        compute_capability=gpu.compute_capability,
        context=context_of(gpu, machine),
        host_bytes=budget.host.bytes if budget.host is not None else None,
    )


def live_forecast(
    machine: Machine, target: Target | None, data: Path | None, tell: Callable[[str], None]
) -> Live:
    """A `live` for `advise`: forecasts a plan for that card, and announces it first.

    What the worst sample of `data` holds beside its text is remembered from the first answer.
    """
    seen = Worst()

    def live(plan: Plan, text_tokens: int | None) -> Forecast:
        tell(f"forecasting {plan.model} at micro-batch {plan.micro_batch}, some seconds ...")
        nonlocal seen
        first = text_tokens is None
        worst = Worst(data=data) if first else replace(seen, text_tokens=text_tokens)
        card = card_for(machine, target)
        found = forecast(plan, worst, card.compute_capability or (8, 6), context=card.context)
        if first:
            seen = Worst(masks=found.masks, answer_tokens=found.answer_tokens)
        # A later question names the length that was counted for the first.
        return found.model_copy(update={"counted_by": counted_by(plan, data)})

    return live


Live = Callable[[Plan, int | None], "Forecast"]
