"""What more cards bring: the same training on one, two, four and so on, by the forecast of a step.

The effective batch stays the user's. So more cards have fewer rows each, of which the last ones may
come out uneven, and each step ends with an exchange of gradients that one card does not need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from pydantic import Field

from advisor.cost.duration import REASON_SEG, Duration, duration_of
from profiles.exchange import link_of, step_exchange_seconds
from profiles.findings import PlanError
from profiles.gpus import GpuProfile
from profiles.measurement import DataCounts
from profiles.plan import Plan
from profiles.records import Frozen

WORTH = 0.9  # of the time on fewer cards: what saves less than a tenth is no gain


class OnCards(Frozen):
    """One training on so many cards."""

    cards: int = Field(description="of all machines")
    samples_per_second: float = Field(description="questions, from update to update")
    efficiency: float = Field(description="of each card, beside one alone")
    step_seconds: float
    exchange_seconds: float = Field(description="of a step, for gradients")
    seconds: float = Field(description="of the whole training, evaluations and caches included")


class Several(Frozen):
    """One training on one card and on more, up to a number."""

    rows: tuple[OnCards, ...]
    basis: Literal["forecast"] = "forecast"
    link: str = Field(description="what gradients pass through, as assumed")
    worth: int = Field(description="cards, of those above, after which more gain next to nothing")


def several(
    plan: Plan, card: GpuProfile | None, most: int, counts: DataCounts = REASON_SEG
) -> Several | None:
    """The plan's training on one card and on up to `most`; None where one card alone is meant.

    Cards of a machine are filled before there is a second machine. A number that the plan's batch
    cannot be shared among is left out. Raises ValueError where the card lacks the plan's dtype.
    """
    if most < 2:
        return None
    found = [(one, duration_of(one, card, counts)) for one in _plans(plan, most)]
    rows = [_row(one, duration, alone=found[0][1]) for one, duration in found]
    worth = rows[0]
    for row in rows[1:]:
        worth = row if row.seconds < WORTH * worth.seconds else worth
    nodes = _nodes(plan, most)
    return Several(rows=tuple(rows), link=link_of(nodes).source, worth=worth.cards)


def _plans(plan: Plan, most: int) -> Iterator[Plan]:
    numbers = {1, most, *(2**n for n in range(1, most.bit_length()) if 2**n <= most)}
    for number in sorted(numbers):
        with suppress(PlanError):
            yield plan.override([f"processes={number}", f"nodes={_nodes(plan, number)}"])


def _nodes(plan: Plan, cards: int) -> int:
    """Machines for so many cards, if each has as many as the plan's; of a plan for one, one."""
    return -(-cards // plan.local_processes) if plan.processes > 1 else 1


def _row(plan: Plan, duration: Duration, alone: Duration) -> OnCards:
    cards = plan.processes
    return OnCards(
        cards=cards,
        samples_per_second=plan.effective_batch / duration.step_seconds,
        efficiency=alone.step_seconds / (cards * duration.step_seconds),
        step_seconds=duration.step_seconds,
        exchange_seconds=step_exchange_seconds(plan),
        seconds=duration.seconds,
    )
