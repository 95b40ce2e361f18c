"""What more cards bring: the same training on one, two, four and so on, by the forecast of a step.

The effective batch stays the user's, so each of several cards gets fewer rows, and some may get
more than others. Each step ends with an exchange of gradients, which a single card does not need.
NCCL takes memory too, so each of several cards may need a slower plan than a single card.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import Field

from advisor.cost.duration import REASON_SEG, Duration, duration_of
from profiles.exchange import link_of, step_exchange_seconds
from profiles.gpus import GpuProfile
from profiles.measurement import DataCounts
from profiles.plan import Plan
from profiles.records import Frozen

WORTH = 0.9  # of the time on fewer cards: saving less than a tenth counts as no gain


class Planned(NamedTuple):
    """A plan for a number of cards, the slowest card, and whether no plan is better for them."""

    plan: Plan
    card: GpuProfile | None
    best: bool = True


class OnCards(Frozen):
    """The training on a number of cards."""

    cards: int = Field(description="of all machines")
    best: bool = Field(True, description="with the best plan for this number; false: the advised")
    samples_per_second: float = Field(description="questions, from update to update")
    efficiency: float = Field(description="of each card, beside one alone with its own plan")
    step_seconds: float
    exchange_seconds: float = Field(description="of a step, for gradients")
    seconds: float = Field(description="of the whole training, evaluations and caches included")


class Several(Frozen):
    """One training on one card and on more, up to a number."""

    rows: tuple[OnCards, ...]
    basis: Literal["forecast"] = "forecast"
    link: str = Field(description="what gradients pass through, as assumed")
    worth: int = Field(description="cards, of those above, after which more gain next to nothing")


def several(plans: Iterable[Planned], counts: DataCounts = REASON_SEG) -> Several | None:
    """The training by each of the plans; None unless the first is for one card, and others follow.

    Raises ValueError where a card lacks its plan's dtype.
    """
    found = [(one, duration_of(one.plan, one.card, counts)) for one in plans]
    if len(found) < 2 or found[0][0].plan.processes > 1:
        return None
    rows = [_row(one, duration, alone=found[0][1]) for one, duration in found]
    worth = rows[0]
    for row in rows[1:]:
        worth = row if row.seconds < WORTH * worth.seconds else worth
    link = link_of(max(one.plan.nodes for one, _ in found))
    return Several(rows=tuple(rows), link=link.source, worth=worth.cards)


def numbers(most: int) -> list[int]:
    """One card, two, four and so on, and the most."""
    return sorted({most, *(2**n for n in range(most.bit_length()))})


def _row(planned: Planned, duration: Duration, alone: Duration) -> OnCards:
    plan = planned.plan
    return OnCards(
        cards=plan.processes,
        best=planned.best,
        samples_per_second=plan.effective_batch / duration.step_seconds,
        efficiency=alone.step_seconds / (plan.processes * duration.step_seconds),
        step_seconds=duration.step_seconds,
        exchange_seconds=step_exchange_seconds(plan),
        seconds=duration.seconds,
    )
