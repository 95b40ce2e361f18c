"""Forecasts of plans for one card, made one after the other when a search asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.card import Card, card_for
from advisor.memory.forecast import Forecast, counted_by, forecast, step_by_component
from advisor.memory.worst_sample import Worst
from profiles.measurement import DataCounts, Timeline
from profiles.pictures import shrinks_pictures
from profiles.plan import Plan

Live = Callable[[Plan, int | None], Forecast]


@dataclass
class CountingLive:
    """A `live` that remembers how much data was counted on the way, and its largest picture."""

    live: Live
    counts: DataCounts | None = None
    image_tokens: int | None = None

    def __call__(self, plan: Plan, text_tokens: int | None) -> Forecast:
        """The forecast that `live` makes."""
        found = self.live(plan, text_tokens)
        if found.data is not None:
            self.counts, self.image_tokens = found.data, found.image_tokens
        return found


@dataclass
class LiveForecasts:
    """A `live` for `advise`: forecasts a plan for one card, and announces it first.

    What the worst sample of `data` holds beside its text is remembered from the first answer.
    """

    card: Card
    data: Path | None
    tell: Callable[[str], None]
    seen: Worst = Worst()
    made: int = 0

    def __call__(self, plan: Plan, text_tokens: int | None) -> Forecast:
        """The forecast at a text length; None: of the longest of the data, counted now."""
        self.made += 1
        self.tell(f"forecast {self.made}: {plan.model}{_pictures(plan)}, some seconds ...")
        first = text_tokens is None
        if first and not plan.mixture.reason_seg_alone:
            drawn = plan.mixture.samples * plan.schedule.epochs
            self.tell(f"  looking for the longest of {drawn} questions first, up to minutes ...")
        worst = Worst(data=self.data) if first else self._worst(text_tokens)
        found = forecast(plan, worst, self.card)
        if first:
            self.seen = Worst(
                masks=found.masks,
                answer_tokens=found.answer_tokens,
                image_tokens=found.image_tokens,
            )
        # A later question names the length that was counted for the first.
        return found.model_copy(update={"counted_by": counted_by(plan, self.data)})

    def step(self, plan: Plan, text_tokens: int) -> Timeline | None:
        """The step that a forecast at that text length counts; None where it has no figure."""
        return step_by_component(plan, self._worst(text_tokens), self.card)

    def _worst(self, text_tokens: int | None) -> Worst:
        return replace(self.seen, text_tokens=text_tokens)


def _pictures(plan: Plan) -> str:
    """What distinguishes this forecast from others of a search, such as the size of pictures."""
    if not shrinks_pictures(plan):
        return f" at micro-batch {plan.micro_batch}"
    return f" with pictures of at most {plan.profile.most_image_tokens} tokens, one of four sizes"


def live_forecast(
    machine: Machine, target: Target | None, data: Path | None, tell: Callable[[str], None]
) -> LiveForecasts:
    """Forecasts for `target`, or this machine's card, without a verdict."""
    card = card_for(machine, target)
    uncapped = Card(compute_capability=card.compute_capability, context=card.context)
    return LiveForecasts(uncapped, data, tell)
