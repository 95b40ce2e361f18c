"""Judges candidate plans on one card, picks the preferred one, and keeps the ones to fall back on.

A plan must fit, on the card and in host memory; `preference` orders those that do. A larger card
can only make more plans fit, so it never gets a worse one. The effective batch is the user's and
is never changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from advisor.choice.candidate import Candidate, Choice, Scales, Weighed
from advisor.choice.candidates import Family
from advisor.choice.preference import (
    STORAGES,
    fastest_of,
    preferred,
    why_not,
)
from advisor.machine.budget import Budget, Bytes, judge
from profiles.levers import needs_no_more
from profiles.plan import Plan
from profiles.preferences import PREFERENCES, Preference
from profiles.tested import TestedRow, Verdict

OTHERS_EACH = 3  # plans shown beside the chosen one, of each storage
WORTH_A_CARD = 1.1  # times the speed: less is no reason for a larger card
RUNGS = 4  # fall-back plans that go with a plan
RUNG_LAYERS = 4  # decoder layers between two plans that are looked at
RUNG_SHARE = 0.93  # each takes at most this share of the one before

Rank = Callable[[Weighed], tuple[float, ...]]


@dataclass(frozen=True)
class Limits:
    """What a plan has to go into: the budget, and what ran out of memory before."""

    budget: Budget
    refuting: Sequence[TestedRow] = ()  # rows that ran out of at least as much as is usable
    spills: bool = False  # the driver moves tensors to host memory instead of failing


def choose(
    families: Sequence[Family],
    prefer: Preference,
    scales: Scales,
    limits: Limits,
    best_alone: bool = False,
) -> Choice | None:
    """The preferred plan of `families` and, unless `best_alone`, the plans around it.

    None if no plan can be weighed.
    """
    judged = list(chain.from_iterable(_largest(one, scales, limits) for one in families))
    if not judged:
        return None
    fitting = [candidate for candidate in judged if candidate.verdict == "FITS"]
    tight = [candidate for candidate in judged if candidate.verdict == "TIGHT"]
    closest = min(tight or judged, key=lambda c: _lacking(c, limits.budget))
    fastest = fastest_of(fitting)

    def best_by(order: Preference) -> Weighed:
        return max(fitting, key=lambda c: preferred(order, c, fastest), default=closest)

    best = best_by(prefer)
    considered = _considered(judged, best, lambda c: preferred(prefer, c, fastest))
    if best_alone:
        return Choice(considered[0], considered)
    others = {order: best_by(order) for order in PREFERENCES if order != prefer}
    return Choice(
        best=considered[0],
        considered=considered,
        ladder=_ladder(families, best, prefer, scales, limits),
        better=_better(families, best, prefer, scales, limits),
        alternatives={o: one.checked() for o, one in others.items() if one.plan != best.plan},
    )


def verdict_of(
    plan: Plan, pool: int, host: int, budget: Budget, spills: bool
) -> tuple[Verdict, str]:
    """Whether `pool` bytes of the card and `host` bytes of host memory fit; if not, why."""
    verdict, why = judge(pool, budget, spills), ""
    if verdict != "FITS":
        why = "inside the margin" if verdict == "TIGHT" else "needs more than is usable"
    if verdict in ("FITS", "TIGHT") and (short := budget.host_shortage(plan, host)):
        return "OOM", short
    return verdict, why


def _lacking(candidate: Weighed, budget: Budget) -> tuple[int, int]:
    """Bytes that card and host lack for the candidate, then the bytes that it takes of the card."""
    needs = candidate.needs.bytes
    lacking = max(0, needs - budget.usable.bytes)
    if budget.host is not None:
        lacking += max(0, candidate.host_bytes - budget.host.bytes)
    return lacking, needs


def _largest(family: Family, scales: Scales, limits: Limits) -> Iterator[Weighed]:
    """The family's largest plan that fits, its smallest, and its smallest wholly on the card."""
    budget = limits.budget

    def fits(step: int) -> bool:
        found = scales.needs(family.at(step))
        return found is not None and found[0].bytes <= budget.usable.bytes

    def is_too_much_for_the_host(step: int) -> bool:
        plan = family.at(step)
        found = scales.needs(plan)
        return found is not None and bool(budget.host_shortage(plan, found[1]))

    last = len(family.path) - 1
    # The card needs less with every step along the path, the host more.
    low = last
    if fits(last):  # two plans that are judged anyway are asked first
        part = (0, family.on_card) if fits(family.on_card) else (family.on_card + 1, last)
        low = bisect_left(range(last), True, *part, key=fits)
    while low < last and _refuting(family.at(low), limits.refuting) is not None:
        low += 1
    smallest = last  # which most hosts hold
    if is_too_much_for_the_host(last):
        smallest = bisect_left(range(1, last), True, key=is_too_much_for_the_host)
    for step in {low, family.on_card, smallest}:
        candidate = _judged(family.at(step), scales, limits)
        if candidate is not None:
            yield candidate


def _judged(plan: Plan, scales: Scales, limits: Limits) -> Weighed | None:
    found = scales.needs(plan)
    if found is None:
        return None
    return _weighed(plan, *found, scales, limits)


def _weighed(plan: Plan, needs: Bytes, host: int, scales: Scales, limits: Limits) -> Weighed:
    verdict, why = verdict_of(plan, needs.bytes, host, limits.budget, limits.spills)
    fits = verdict in ("FITS", "TIGHT")
    if fits and (refuting := _refuting(plan, limits.refuting)) is not None:
        verdict = "SPILLS" if limits.spills else "OOM"
        why = f"row {refuting.id} ran out of memory, and it needed no more"
    return Weighed(plan, needs, host, scales.speed(plan), verdict, why)


def _considered(judged: Iterable[Weighed], best: Weighed, rank: Rank) -> tuple[Candidate, ...]:
    """The chosen plan, then the best few of every storage, each with why it was not chosen."""

    def standing(candidate: Weighed) -> tuple[bool, tuple[float, ...]]:
        return candidate.verdict == "FITS", rank(candidate)

    groups: dict[tuple[str, int], Weighed] = {}
    for candidate in sorted(judged, key=standing):
        groups[candidate.plan.quantization, candidate.plan.micro_batch] = candidate
    others: list[Candidate] = []
    shown: dict[str, int] = {}
    for candidate in sorted(groups.values(), key=standing, reverse=True):
        storage = candidate.plan.quantization
        if candidate.plan == best.plan or shown.get(storage, 0) == OTHERS_EACH:
            continue
        shown[storage] = shown.get(storage, 0) + 1
        why = candidate.why_not or why_not(candidate, best)
        others.append(candidate._replace(why_not=why).checked())
    return (best.checked(), *others)


def _ladder(
    families: Iterable[Family],
    best: Weighed,
    prefer: Preference,
    scales: Scales,
    limits: Limits,
) -> tuple[Candidate, ...]:
    """Plans to fall back on: each is the best of those clearly smaller than the one before."""
    alone, most = Limits(limits.budget), RUNG_SHARE * best.needs.bytes
    plans = (
        family.at(step)
        for family in families
        if family.plan.micro_batch <= best.plan.micro_batch
        for step in {0, family.on_card, *range(len(family.path) - 1, 0, -RUNG_LAYERS)}
    )
    steps = [
        _weighed(plan, *found, scales, alone)
        for plan in plans
        if (found := scales.needs(plan)) is not None
        and found[0].bytes <= most
        and not limits.budget.host_shortage(plan, found[1])
    ]
    rungs: list[Weighed] = []
    last = best
    while len(rungs) < RUNGS:
        smaller = [c for c in steps if c.needs.bytes <= RUNG_SHARE * last.needs.bytes]
        if not smaller:
            break
        fastest = fastest_of(smaller)
        last = max(smaller, key=lambda c: preferred(prefer, c, fastest))
        rungs.append(last)
    return tuple(rung.checked() for rung in rungs)


def _better(
    families: Iterable[Family],
    best: Weighed,
    prefer: Preference,
    scales: Scales,
    limits: Limits,
) -> Candidate | None:
    """The smallest plan that is worth a larger card, where only the card is too small for it."""

    def is_worth(candidate: Weighed) -> bool:
        fastest = fastest_of([candidate, best])
        there, here = (preferred(prefer, one, fastest) for one in (candidate, best))
        gain = candidate.speed.samples_per_second / best.speed.samples_per_second
        rounded, rounded_here = (STORAGES.index(one.plan.quantization) for one in (candidate, best))
        moved = candidate.plan.host_layers == 0 < best.plan.host_layers
        return there > here and (rounded < rounded_here or moved or gain >= WORTH_A_CARD)

    plans = (family.at(step) for family in families for step in (0, family.on_card))
    found = (
        candidate
        for plan in plans
        if (needs := scales.needs(plan)) is not None
        and needs[0].bytes > limits.budget.usable.bytes
        and not limits.budget.host_shortage(plan, needs[1])
        and is_worth(candidate := _weighed(plan, *needs, scales, limits))
    )
    least = min(found, key=lambda c: c.needs.bytes, default=None)
    return least and least.checked()


def _refuting(plan: Plan, rows: Iterable[TestedRow]) -> TestedRow | None:
    """The first row that ran out of memory although it needs no more than `plan`."""
    return next((row for row in rows if needs_no_more(row.plan, plan)), None)
