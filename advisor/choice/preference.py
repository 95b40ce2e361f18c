"""The orders in which plans are preferred, each a list of criteria from the first to the last.

docs/advice.md gives the reasons. All prefer a plan that fits, on the card and in host memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, log
from typing import TypeAlias

from advisor.choice.candidate import Candidate, Weighed
from profiles.levers import from_most_to_least
from profiles.preferences import Preference
from profiles.settings import Quantization
from profiles.text import counted

Judged: TypeAlias = Candidate | Weighed

# Best arithmetic first: as published, a scale a row, four bits.
STORAGES: tuple[Quantization, ...] = from_most_to_least("quantization")
AFFORDABLE = 0.9  # of the speed of the fastest plan: more precise weights may cost a tenth
SAME_PACE = 1.02  # speeds that differ by less are equal: forecasts are no better


def preferred(prefer: Preference, candidate: Judged, fastest: float) -> tuple[float, ...]:
    """The candidate's place in an order: larger is better, compared from left to right.

    `fastest` is the speed of the fastest plan that it competes with, in samples a second.
    """
    plan, speed = candidate.plan, candidate.speed.samples_per_second
    on_card = not plan.host_layers
    precision = len(STORAGES) - STORAGES.index(plan.quantization)
    affordable = precision if speed >= AFFORDABLE * fastest else 0
    pace = floor(log(speed) / log(SAME_PACE))
    spare = -candidate.needs.bytes
    # Among equal plans, one that keeps the embeddings on the card, then the one with more to spare.
    last = -plan.host_embeddings, spare
    orders: dict[Preference, tuple[float, ...]] = {
        "usual": (on_card, affordable, pace, *last),
        "speed": (pace, precision, on_card, *last),
        "precision": (precision, on_card, pace, *last),
        "headroom": (on_card, spare, pace),
    }
    return orders[prefer]


def behind(speed: float, fastest: float) -> str:
    """How much slower than the fastest a plan is; empty where better storage is worth that."""
    return (
        ""
        if speed >= AFFORDABLE * fastest
        else f"{1 - speed / fastest:.1%} slower than the fastest"
    )


def fastest_of(candidates: Iterable[Judged]) -> float:
    """The speed that precision is weighed against: the fastest, without host layers if possible."""
    everyone = list(candidates)
    on_card = [one for one in everyone if not one.plan.host_layers]
    return max((one.speed.samples_per_second for one in on_card or everyone), default=0.0)


def why_not(candidate: Judged, best: Judged) -> str:
    """What speaks against a plan that fits, beside the chosen one."""
    plan, chosen = candidate.plan, best.plan
    change = candidate.speed.samples_per_second / best.speed.samples_per_second - 1
    more = candidate.needs.bytes - best.needs.bytes
    if plan.host_layers and not chosen.host_layers:
        return f"streams {counted(plan.host_layers, 'layer')} from host memory"
    if STORAGES.index(plan.quantization) > STORAGES.index(chosen.quantization):
        return f"rounds the base weights to {plan.quantization}"
    if change <= 1 / SAME_PACE - 1:
        return f"{-change:.0%} slower"
    return "as fast, and takes more memory" if more > 0 else "no faster"
