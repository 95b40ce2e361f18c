"""What a search depends on, and how it weighs a plan: by forecasts, tested rows and rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TypeAlias, TypeVar

from advisor.choice.candidate import Scales, Speed
from advisor.machine.budget import Budget, Bytes
from advisor.memory.live import Live
from advisor.memory.speed import TYPICAL, samples_per_second
from profiles.findings import Finding
from profiles.gpus import GpuProfile, gpus
from profiles.grid import Estimate, estimate, nearest
from profiles.levers import no_more_by
from profiles.pictures import shrinks_pictures
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.tested import TestedRow, one_of_each

# A source that begins so is of an interpolated figure; other figures are of the plan itself.
INTERPOLATED = "interpolated"
CACHING = "building the feature cache takes"
T = TypeVar("T")
Held: TypeAlias = list[tuple[int, TestedRow]]  # rows, and what each counts for in bytes
APART = ("quantization", "micro_batch", "model")  # many plans have the same, most rows another
OTHER_VERSIONS = 1.02  # a row of another torch counts for that much more: a policy


@dataclass(frozen=True)
class Setting:
    """What a search depends on, besides the plan."""

    budget: Budget
    card: GpuProfile | None = None  # its rates; None: not in the catalogue
    rows: tuple[TestedRow, ...] = ()
    torch: str = ""  # its version where the plan is to run
    spills: bool = False
    refusals: Callable[[Plan], list[Finding]] = lambda plan: []
    live: Live | None = None
    prefer: Preference = "usual"
    data: Path | None = None
    text_tokens: int | None = None
    counted_by: str = ""  # the tokenizer that counted the data's longest text
    questions: int | None = None  # a picture of the data has, at most; None: not known
    image_tokens: int | None = None  # the data's largest picture takes, if clearly below the most
    exact: bool = False  # the plan chosen is forecast even where the grid reaches
    guess: float = 1.0  # the first correction of the grid's figures for plans beyond it
    best_alone: bool = False  # nobody asks for the ladder, or other plans around it


def scales_for(setting: Setting, text: int, correction: float | None) -> Scales:
    """How a search weighs plans at a number of text tokens; `correction`: of first guesses."""
    here = _minor(setting.torch)
    held = [
        (_counts_for(row, here), row)
        for row in setting.rows
        if row.verdict in ("FITS", "TIGHT")
        and row.source != "seed"
        and row.needed_bytes is not None
        and text_of(row) >= text
    ]
    held.sort(key=itemgetter(0))  # so that the first row that covers a plan is the one to quote
    usable = one_of_each(held, lambda one: one[1].plan)
    kept: dict[object, Held] = {}

    def rows_for(plan: Plan) -> Held:
        key = attrgetter(*APART)(plan)
        if key not in kept:
            kept[key] = [one for one in usable if no_more_by(APART, plan, one[1].plan)]
        return kept[key]

    needs = partial(_needs, rows_for, text, correction, setting)
    return Scales(_asked_once(needs), _asked_once(partial(_speed, setting, text)))


def _asked_once(ask: Callable[[Plan], T]) -> Callable[[Plan], T]:
    """`ask`, once for each plan; families keep theirs, and an equal one is not looked for."""
    kept: dict[int, tuple[Plan, T]] = {}

    def asked(plan: Plan) -> T:
        if id(plan) not in kept:
            kept[id(plan)] = plan, ask(plan)
        return kept[id(plan)][1]

    return asked


def counted_by(by: str) -> str:
    """Words for a figure's source: which tokenizer counted the text; empty where none is named."""
    return f", text counted by {by}" if by else ""


def _needs(
    rows_for: Callable[[Plan], Held],
    text: int,
    correction: float | None,
    setting: Setting,
    plan: Plan,
) -> tuple[Bytes, int] | None:
    """The pool and the host memory of `plan` at most: by forecast, or by a row that took less.

    Beyond the grid the figure is `correction` times a first guess. With `correction` None, plans
    beyond the grid are not weighed.
    """
    seen = plan.with_pictures_of(setting.image_tokens)
    found = estimate(seen, text)
    counted = counted_by(setting.counted_by)
    source = f"{INTERPOLATED} between forecasts at {text} text tokens a sample{counted}"
    step = found.step_bytes if found is not None else 0
    if correction is not None and (found is None or shrinks_pictures(seen)):
        found = found or nearest(seen, text)
        if found is not None:
            lasting = lasting_bytes(found, seen)
            step = lasting + round((found.step_bytes - lasting) * correction)
        source = "forecasts of the usual settings, corrected"
    if found is None:
        return None
    if (pool := max(step, found.caching_bytes)) > step:
        source = f"{CACHING} more than a step"
    for took, row in rows_for(plan):
        if took >= pool:
            break
        if row.covers(seen):
            source = f"row {row.id}: {row.title}"
            if took != row.needed_bytes:
                source += f", with torch {_minor(row.versions['torch'])}"
            most = max(took, found.caching_bytes)
            return Bytes(bytes=most, basis="tested", source=source), found.host_bytes
    return Bytes(bytes=pool, basis="forecast", source=source), found.host_bytes


def _counts_for(row: TestedRow, here: str) -> int:
    """The row's bytes, raised if it was measured with another torch than `here` (major.minor)."""
    took, torch = row.needed_bytes or 0, _minor(row.versions.get("torch", ""))
    return round(OTHER_VERSIONS * took) if torch and torch != here else took


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _speed(setting: Setting, text: int, plan: Plan) -> Speed:
    plan = plan.with_pictures_of(setting.image_tokens)
    if setting.questions is not None and setting.questions < plan.questions_per_picture:
        plan = plan.model_copy(update={"questions_per_picture": setting.questions})
    rates = setting.card or gpus()[TYPICAL]
    source = f"estimated for {rates.title}"
    if setting.card is None:
        source += ", as this card is not in the catalogue"
    speed = samples_per_second(plan, text, rates)
    return Speed(samples_per_second=speed, basis="forecast", source=source)


def lasting_bytes(guess: Estimate, seen: Plan) -> int:
    """Bytes that no correction changes: smaller pictures make activations smaller, not weights."""
    return guess.frozen_bytes + guess.trained_bytes if shrinks_pictures(seen) else 0


def text_of(row: TestedRow) -> int:
    """Text tokens of the row's samples."""
    return row.data_shape.text_tokens if row.data_shape else 0
