"""Forecasts of a plan for one card, one question after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.card import Card, card_for
from advisor.memory.forecast import Forecast, counted_by, forecast
from advisor.memory.worst_sample import Worst
from profiles.measurement import DataCounts
from profiles.plan import Plan

Live = Callable[[Plan, int | None], Forecast]


@dataclass
class Heard:
    """A `live` that remembers how much data was counted on the way."""

    live: Live
    counts: DataCounts | None = None

    def __call__(self, plan: Plan, text_tokens: int | None) -> Forecast:
        """The forecast that `live` makes."""
        found = self.live(plan, text_tokens)
        self.counts = found.data or self.counts
        return found


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
        uncapped = Card(compute_capability=card.compute_capability, context=card.context)
        found = forecast(plan, worst, uncapped)
        if first:
            seen = Worst(
                masks=found.masks,
                answer_tokens=found.answer_tokens,
                image_tokens=found.image_tokens,
            )
        # A later question names the length that was counted for the first.
        return found.model_copy(update={"counted_by": counted_by(plan, data)})

    return live
