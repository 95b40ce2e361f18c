"""Ranks candidate plans on one card and keeps the ones to fall back on.

The rules, in order: a plan must fit, on the card and in host memory; it should train at half the
speed or more that the card would reach with unlimited memory; among those the arithmetic is first
(base weights as published before int8 before NF4), then speed. A larger card can only make more
plans fit, so it never gets a worse one. The effective batch is the user's and is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from advisor.choice.candidate import Candidate, Choice, Scales
from advisor.choice.candidates import STORAGES, Family, families
from advisor.machine.budget import Budget, judge
from profiles.findings import Finding
from profiles.plan import Plan
from profiles.sizes import gib
from profiles.tested import TestedRow, Verdict, needs_no_more, one_of_each

OTHERS_EACH = 3  # plans shown beside the chosen one, of each storage
SLOW = 0.5  # of the card's best speed: below it, better arithmetic is not worth the wait
RUNGS = 4  # fall-back plans that go with a plan
RUNG_LAYERS = 4  # decoder layers between two plans that are looked at
RUNG_SHARE = 0.93  # each takes at most this share of the one before


def choose(
    base: Plan,
    pinned: Iterable[str],
    budget: Budget,
    scales: Scales,
    refusals: Callable[[Plan], list[Finding]],
    rows: Sequence[TestedRow] = (),
    spills: bool = False,
) -> Choice | None:
    """The best plan that can be made from `base` without changing its `pinned` settings.

    `refusals` says why a plan cannot run on the card at all; `spills`: the driver moves tensors to
    host memory instead of failing. None where no plan can be weighed.
    """
    open_ones = [family for family in families(base, pinned) if not refusals(family.plan)]
    against = [row for row in rows if _is_against(row, budget)]
    rows = one_of_each(against, attrgetter("plan"))
    relieved = (_relieved(family, budget, scales, rows, spills) for family in open_ones)
    judged = [candidate for candidate in relieved if candidate is not None]
    if not judged:
        return None
    fastest = max(scales.speed(family.at(0)).samples_per_second for family in open_ones)

    def rank(candidate: Candidate) -> tuple[float, ...]:
        return _rank(candidate, fastest)

    fitting = [candidate for candidate in judged if candidate.verdict == "FITS"]
    tight = [candidate for candidate in judged if candidate.verdict == "TIGHT"]
    smallest = min(tight or judged, key=lambda c: c.needs.bytes)
    best = max(fitting, key=rank, default=smallest)
    better = [c for c in judged if _is_worth(rank(c), rank(best)) and _lacks_memory(c, budget)]
    return Choice(
        best=best,
        considered=_others(judged, best, rank),
        ladder=_ladder(open_ones, best, budget, scales, rank),
        better=min(better, key=lambda c: c.needs.bytes, default=None),
    )


def _relieved(
    family: Family, budget: Budget, scales: Scales, rows: Sequence[TestedRow], spills: bool
) -> Candidate | None:
    """The family's largest plan that fits; its smallest one if none does."""

    def fits(step: int) -> bool:
        found = scales.needs(family.at(step))
        return found is not None and found[0].bytes <= budget.usable.bytes

    last = len(family.path) - 1
    low, high = 0, last
    while low < high:  # less is needed with every step
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    while low < last and _refuting_row(family.at(low), rows) is not None:
        low += 1
    return _judged(family.at(low), budget, scales, rows, spills)


def _judged(
    plan: Plan, budget: Budget, scales: Scales, rows: Sequence[TestedRow], spills: bool
) -> Candidate | None:
    found = scales.needs(plan)
    if found is None:
        return None
    needs, host = found
    verdict, why = verdict_of(needs.bytes, host, budget, spills)
    refuting = _refuting_row(plan, rows)
    if refuting is not None and verdict in ("FITS", "TIGHT"):
        verdict = "SPILLS" if spills else "OOM"
        why = f"row {refuting.id} ran out of memory with no more than this"
    speed = scales.speed(plan)
    return Candidate(
        plan=plan, needs=needs, host_bytes=host, speed=speed, verdict=verdict, why_not=why
    )


def verdict_of(pool: int, host: int, budget: Budget, spills: bool) -> tuple[Verdict, str]:
    """How `pool` bytes on the card and `host` bytes beside it go into the budget, and why not."""
    verdict, why = judge(pool, budget, spills), ""
    if verdict != "FITS":
        why = "inside the margin" if verdict == "TIGHT" else "needs more than is usable"
    if verdict in ("FITS", "TIGHT") and budget.host and not budget.host_holds(host):
        return "OOM", f"host memory: {gib(host)} needed, {gib(budget.host.bytes)} usable"
    return verdict, why


def _rank(candidate: Candidate, fastest: float) -> tuple[float, ...]:
    """Higher is better."""
    speed = candidate.speed.samples_per_second
    worth = speed >= SLOW * fastest
    arithmetic = len(STORAGES) - STORAGES.index(candidate.plan.quantization) if worth else 0
    plan = candidate.plan
    # What is equal otherwise stays on the card.
    return arithmetic, speed, -plan.host_layers, -plan.host_embeddings, -candidate.needs.bytes


def _is_worth(rank: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether the first has better arithmetic, or is 5 % faster."""
    return rank[0] > other[0] or (rank[0] == other[0] and rank[1] > 1.05 * other[1])


def _lacks_memory(candidate: Candidate, budget: Budget) -> bool:
    """Whether only the card's memory is too small."""
    too_large = candidate.needs.bytes > budget.usable.bytes
    return too_large and budget.host_holds(candidate.host_bytes)


def _others(
    judged: Sequence[Candidate], best: Candidate, rank: Callable[[Candidate], tuple[float, ...]]
) -> tuple[Candidate, ...]:
    """The chosen one, then the best few of every storage, with why each was not."""
    groups: dict[tuple[str, int], Candidate] = {}
    for candidate in sorted(judged, key=lambda c: (c.verdict == "FITS", rank(c))):
        groups[candidate.plan.quantization, candidate.plan.micro_batch] = candidate
    others = []
    shown: dict[str, int] = {}
    order = sorted(groups.values(), key=lambda c: (c.verdict == "FITS", rank(c)), reverse=True)
    for candidate in order:
        storage = candidate.plan.quantization
        shown[storage] = shown.get(storage, 0) + (candidate is not best)
        if candidate is best or shown[storage] > OTHERS_EACH:
            continue
        why = candidate.why_not
        if not why:
            coarser = rank(candidate)[0] < rank(best)[0]
            faster = candidate.speed.samples_per_second > best.speed.samples_per_second
            why = "slower" if not faster else "no faster"
            if coarser and faster:
                why = f"rounds the base weights to {candidate.plan.quantization}"
            elif coarser and candidate.plan.quantization == best.plan.quantization:
                why = "less than half as fast as this card can be"
        others.append(candidate.model_copy(update={"why_not": why}))
    return (best, *others)


def _ladder(
    open_ones: Sequence[Family],
    best: Candidate,
    budget: Budget,
    scales: Scales,
    rank: Callable[[Candidate], tuple[float, ...]],
) -> tuple[Candidate, ...]:
    """Plans to fall back on, each smaller than the one before: the best of what is small enough."""
    steps = [
        found
        for family in open_ones
        if family.plan.micro_batch <= best.plan.micro_batch
        for step in {0, *range(len(family.path) - 1, 0, -RUNG_LAYERS)}
        if (found := _judged(family.at(step), budget, scales, (), False)) is not None
        and budget.host_holds(found.host_bytes)
    ]
    rungs: list[Candidate] = []
    last = best
    while len(rungs) < RUNGS:
        smaller = [c for c in steps if c.needs.bytes <= RUNG_SHARE * last.needs.bytes]
        if not smaller:
            break
        last = max(smaller, key=rank)
        rungs.append(last)
    return tuple(rungs)


def _is_against(row: TestedRow, budget: Budget) -> bool:
    """Whether a row ran out of at least as much memory as is usable."""
    told = row.source != "seed" and row.verdict == "OOM" and row.limit_bytes is not None
    return told and (row.limit_bytes or 0) >= budget.usable.bytes


def _refuting_row(plan: Plan, rows: Iterable[TestedRow]) -> TestedRow | None:
    """The first row that ran out of memory although it needs no more than `plan`."""
    return next((row for row in rows if needs_no_more(row.plan, plan)), None)
