"""Reasons that tested rows give: what a lever gained and cost, and which claims they refute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from advisor.choice.candidate import Reason
from advisor.report.plan_words import lora_text
from profiles.levers import value_text
from profiles.plan import Plan
from profiles.sizes import gib
from profiles.tested import TestedRow


def tested_reason(plan: Plan, rows: Sequence[TestedRow], lever: str) -> Reason | None:
    """What `lever` gains and costs, from two rows that differ in nothing else; None without."""
    value = getattr(plan, lever)
    pair = next(_pairs(plan, rows, lever), None)
    if pair is None:
        return None
    with_it, without = pair
    because = f"{_cost_text(with_it)} (row {with_it.id}); with "
    because += f"{value_text(lever, getattr(without.plan, lever))} {_cost_text(without)}"
    because += f" (row {without.id})"
    text = value_text(lever, value)
    return Reason(setting=lever, value=text, because=because, basis="tested")


def measured_rows(model: str, rows: Iterable[TestedRow]) -> list[TestedRow]:
    """The first measured row of each card and plan of a model."""
    first: dict[tuple[str | None, int], TestedRow] = {}  # a file's rows share their plans
    for row in rows:
        if row.model == model and row.peak_allocated_bytes:
            first.setdefault((row.gpu, id(row.plan)), row)
    return list(first.values())


def _pairs(
    plan: Plan, rows: Sequence[TestedRow], lever: str
) -> Iterator[tuple[TestedRow, TestedRow]]:
    """Pairs of rows that differ in `lever` alone; the first one has it as `plan` does."""
    alike: dict[object, list[TestedRow]] = {}  # but for the lever
    groups = [alike.setdefault(_but_for(lever, row), []) for row in rows]
    for row, group in zip(rows, groups, strict=True):
        group.append(row)
    for with_it, group in zip(rows, groups, strict=True):
        pulled = getattr(with_it.plan, lever)
        for without in group:
            if _pulled(lever, pulled, getattr(without.plan, lever), getattr(plan, lever)):
                yield with_it, without


def _but_for(lever: str, row: TestedRow) -> tuple[object, ...]:
    """The card and all settings of a row except one."""
    return row.gpu, _others(lever)(row.plan)


@cache
def _others(lever: str) -> Callable[[Plan], object]:
    return attrgetter(*(name for name in Plan.model_fields if name != lever))


def _pulled(lever: str, with_it: Any, without: Any, value: Any) -> bool:
    """Whether `with_it` takes less than `without`, and no less than the plan's `value`."""
    if isinstance(value, tuple):
        return set(without) < set(with_it) <= set(value)
    return bool(with_it == value and without != value)


def _cost_text(row: TestedRow) -> str:
    assert row.peak_allocated_bytes is not None
    seconds = f", {row.step_seconds:.2f} s a step" if row.step_seconds else ""
    return gib(row.peak_allocated_bytes) + seconds


def seed_reasons(plan: Plan, rows: Sequence[TestedRow]) -> Iterator[Reason]:
    """The first document's claims for this quantization with (or without) LoRA, if refuted."""
    refuted = [
        row
        for row in rows
        if row.source == "seed"
        and row.status != "recommended"
        and row.contradicted_by
        and row.model == plan.model
        and row.plan.quantization == plan.quantization
        and (row.plan.lora is None) == (plan.lora is None)
    ]
    if not refuted:
        return
    said = f'"{refuted[0].title}"'
    if plan.quantization == "nf4" and plan.lora is not None:
        said = "never LoRA with 4-bit on 8 GB"
    names = ("row " if len(refuted) == 1 else "rows ") + ", ".join(row.id for row in refuted)
    against = dict.fromkeys(name for row in refuted for name in row.contradicted_by)
    facts = "; ".join(f"row {row.id}: {_peak_text(row)}" for row in rows if row.id in against)
    because = f"the document that this project started from says {said} "
    because += f"({names} of lisa-advise table); contradicted by {facts}"
    yield Reason(setting="lora", value=lora_text(plan), because=because, basis="tested")


def _peak_text(row: TestedRow) -> str:
    if row.peak_allocated_bytes is not None:
        return gib(row.peak_allocated_bytes)
    limit = f" at {gib(row.limit_bytes)}" if row.limit_bytes else ""
    return "out of memory" + limit if row.verdict == "OOM" else row.verdict
