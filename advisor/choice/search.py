"""From a base plan and a card to the best plan: by the shipped grid, or with live forecasts.

The grid answers at once for the usual settings. Beyond it (other adapters or trained parts, longer
texts) a first guess chooses a plan, a forecast of that plan corrects the guess, and the choice is
repeated until it stays the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from advisor.choice.candidate import Candidate, Choice, Scales
from advisor.choice.candidates import families
from advisor.choice.rank import Limits, choose, verdict_of
from advisor.choice.scales import (
    CACHING,
    INTERPOLATED,
    Setting,
    counted_by,
    lasting_bytes,
    scales_for,
    text_of,
)
from advisor.machine.budget import (
    WHAT_IF_HOST_BYTES,
    Budget,
    Bytes,
    budget_of,
    margin_for,
    what_if_gpu,
)
from advisor.machine.gpu import Machine
from advisor.memory.speed import TYPICAL, samples_per_second
from profiles.findings import PlanError
from profiles.gpus import GpuProfile, gpus
from profiles.grid import MICRO_BATCHES, Estimate, caching_bytes, estimate, has_corners, nearest
from profiles.pictures import shrinks_pictures
from profiles.plan import Plan
from profiles.settings import PREFIX_TOKENS
from profiles.sizes import GIB, gib
from profiles.tested import TestedRow, one_of_each
from profiles.text import counted

if TYPE_CHECKING:
    from advisor.memory.forecast import Forecast

NONE_RUNS = "no plan with these settings can run"
LIVE_TRIALS = 4
CLOSE = 0.9  # if the forecast is below this share of the estimate, the choice is made again
SMALLER = 7 / 8  # of the usual tokens: from there on the grid's larger pictures are close enough
CARD_SIZES_GIB = (2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)


@dataclass(frozen=True)
class Found:
    """The choice, how it was weighed, and the forecast of the chosen plan if one was made."""

    choice: Choice
    scales: Scales
    text_tokens: int
    forecast: Forecast | None = None
    counted_by: str = ""
    sharing_gain: float = 1.0  # of questions a second, by rows of several


def search(base: Plan, pinned: set[str], setting: Setting) -> Found | str:
    """The best plan that `base` allows with its `pinned` settings; or why there is none.

    Raises what the setting's `live` raises.
    """
    text = setting.text_tokens or base.tokens.max_text_tokens
    if not base.mixture.reason_seg_alone:
        # The rows do not record how many masks and answers their samples held.
        setting = replace(setting, rows=())
    correction = setting.guess
    if setting.data is not None and setting.live is not None:
        first = _chosen(base, pinned, replace(setting, best_alone=True), text, 1.0)
        asked = first.choice.best.plan if first else base
        exact = setting.live(asked, None)
        if not exact.tiers:
            return exact.reason
        text = exact.text_tokens
        # As many masks as questions.
        questions = max(1, exact.masks)
        setting = replace(setting, questions=questions, counted_by=exact.counted_by)
        if (exact.image_tokens or inf) < SMALLER * base.profile.most_image_tokens:
            setting = replace(setting, image_tokens=exact.image_tokens)
            correction = _corrected(asked, exact.tier("pool").bytes, setting, text, correction)
    base = _as_pictures_have(base, pinned, setting.questions)
    if _in_grid(base, text, setting):
        known = _chosen(base, pinned, setting, text, None) or NONE_RUNS
        return known if isinstance(known, str) or not setting.exact else _exactly(known, setting)
    if setting.live is None:
        return "no forecast or tested row covers these settings"
    return _forecast_until_it_stands(base, pinned, setting, text, correction)


def _as_pictures_have(base: Plan, pinned: set[str], questions: int | None) -> Plan:
    """`base` with at most as many questions a picture as the data's have, unless the user set it.

    The plan keeps its own number if the processes could not share the batch with fewer.
    """
    if questions is None or "questions_per_picture" in pinned:
        return base
    fewest = min(questions, base.questions_per_picture)
    with suppress(PlanError):
        return base.override([f"questions_per_picture={fewest}"])
    return base


def _forecast_until_it_stands(
    base: Plan, pinned: set[str], setting: Setting, text: int, correction: float
) -> Found | str:
    """Choose, forecast and correct by turns; if the last choice does not fit, one that did."""
    assert setting.live is not None
    fitting = found = None
    for _ in range(LIVE_TRIALS):
        found = _chosen(base, pinned, setting, text, correction)
        if found is None:
            return NONE_RUNS
        reckoned = found.choice.best
        exact = setting.live(reckoned.plan, text)
        if not exact.tiers:
            return exact.reason
        best = _with_forecast(reckoned, exact, setting)
        share = best.needs.bytes / max(1, reckoned.needs.bytes)
        found = replace(found, choice=_scaled(found.choice, best, share), forecast=exact)
        fitting = found if best.verdict == "FITS" else fitting
        smallest = best.verdict != "FITS" and reckoned.verdict != "FITS"
        if share >= CLOSE and (smallest or best.verdict == "FITS"):
            break
        correction = _corrected(reckoned.plan, best.needs.bytes, setting, text, correction)
    return fitting or found or NONE_RUNS


def _corrected(plan: Plan, needs: int, setting: Setting, text: int, before: float) -> float:
    """The factor that makes the first guess at a plan equal to its forecast."""
    return correction_of(plan.with_pictures_of(setting.image_tokens), needs, text, before)


def correction_of(seen: Plan, needs: int, text: int, before: float = 1.0) -> float:
    """As `_corrected`, for a plan with the data's pictures; `before` if the grid has no guess."""
    guess = _guess(seen, text)
    if guess is None:
        return before
    lasting = lasting_bytes(guess, seen)
    return max(0.0, (needs - lasting) / max(1, guess.step_bytes - lasting))


def _guess(seen: Plan, text: int) -> Estimate | None:
    return estimate(seen, text) or nearest(seen, text)


def _in_grid(base: Plan, text: int, setting: Setting) -> bool:
    """Whether the grid has figures for such plans: it is of the model's usual pictures."""
    if setting.live is not None and shrinks_pictures(base.with_pictures_of(setting.image_tokens)):
        return False
    apart = {"host_layers": 0, "checkpointed_layers": base.profile.decoder.layers}
    return estimate(base.model_copy(update=apart), text) is not None


def _exactly(found: Found, setting: Setting) -> Found:
    """The choice with a forecast of the chosen plan, instead of one between the grid's corners.

    A figure that a tested row measured stays.
    """
    best = found.choice.best
    if setting.live is None:
        return found
    exact = setting.live(best.plan, found.text_tokens)
    if not exact.tiers:
        return found
    if best.needs.basis != "forecast":
        return replace(found, forecast=exact)
    between, best = best.needs.bytes, _with_forecast(best, exact, setting)
    source = f"{best.needs.source}; interpolated it was {gib(between)}"
    needs = best.needs.model_copy(update={"source": source})
    best = best.model_copy(update={"needs": needs})
    choice = replace(found.choice, best=best, considered=(best, *found.choice.considered[1:]))
    return replace(found, choice=choice, forecast=exact)


def basis_text(needs: Bytes) -> str:
    """A figure's basis in words; a forecast may be interpolated between others."""
    return INTERPOLATED if needs.source.startswith(INTERPOLATED) else needs.basis


def largest_micro_batch(plan: Plan, scales: Scales, budget: Budget) -> int | None:
    """The most samples at once that fit with everything else as in `plan`."""

    def is_too_much(number: int) -> bool:
        found = scales.needs(plan.model_copy(update={"micro_batch": number}))
        return found is None or found[0].bytes > budget.usable.bytes

    return bisect_left(range(1, MICRO_BATCHES[-1] + 1), True, key=is_too_much) or None


def smallest_card_gib(needed_bytes: int) -> int | None:
    """The smallest usual card, in GiB, with at least that much usable memory."""
    for size in CARD_SIZES_GIB:
        budget = budget_of(what_if_gpu(size * GIB), Machine(), WHAT_IF_HOST_BYTES)
        if budget is not None and needed_bytes <= budget.usable.bytes:
            return size
    return None


def smallest_cards_text(models: Iterable[str], nccl: int = 0) -> str:
    """From which card size on each of `models` trains; `nccl`: bytes of it for several cards."""
    known = []
    for model in models:
        least = _least_needed(Plan.parse({"model": model, "device": "cuda"}))
        if least is None or (size := smallest_card_gib(least[0] + nccl)) is None:
            continue
        needed, plan = least
        how = f", {counted(plan.host_layers, 'layer')} in host memory" if plan.host_layers else ""
        known.append(f"{model} trains from a {size} GiB card on ({gib(needed)}{how})")
    return "; ".join(known) or "no forecast shows which card would"


def _least_needed(base: Plan) -> tuple[int, Plan] | None:
    """The smallest plan and its bytes on the card, in a machine with the usual host memory."""
    budget = budget_of(what_if_gpu(GIB), Machine(), WHAT_IF_HOST_BYTES)
    needs = [
        (found.pool_bytes, plan)
        for family in families(base, ())
        if family.plan.micro_batch == 1  # larger ones need more
        for step in range(family.on_card, len(family.path))
        if (found := estimate(plan := family.at(step), base.tokens.max_text_tokens)) is not None
        and not (budget and budget.host_shortage(plan, found.host_bytes))
    ]
    return min(needs, key=itemgetter(0), default=None)


def _chosen(
    base: Plan, pinned: set[str], setting: Setting, text: int, correction: float | None
) -> Found | None:
    scales = scales_for(setting, text, correction)
    open_ones = [
        one
        for one in families(base, pinned)
        if (has_corners(one.plan) or "quantization" in pinned) and not setting.refusals(one.plan)
    ]
    limits = Limits(setting.budget, _refuting(setting, text), setting.spills)
    choice = choose(open_ones, setting.prefer, scales, limits, setting.best_alone)
    if choice is None:
        return None
    seen = choice.best.plan.with_pictures_of(setting.image_tokens)
    gain = _sharing_gain(seen, text, setting.card)
    return Found(choice, scales, text, None, setting.counted_by, gain)


def _refuting(setting: Setting, text: int) -> list[TestedRow]:
    """The rows that ran out of at least as much memory as is usable, one of each plan."""
    usable = setting.budget.usable.bytes
    rows = (
        row
        for row in setting.rows
        if row.verdict == "OOM"
        and row.source != "seed"
        and text_of(row) <= text
        and row.limit_bytes is not None
        and row.limit_bytes >= usable
    )
    return one_of_each(rows, attrgetter("plan"))


def _sharing_gain(plan: Plan, text: int, card: GpuProfile | None) -> float:
    """Questions a second with several in a row, divided by those with one in each row."""
    questions, prefix = plan.questions_per_picture, min(PREFIX_TOKENS, text // 2)
    alone = plan.model_copy(update={"questions_per_picture": 1})
    share = prefix + (text - prefix) // questions  # a question's own part of the longest row
    rates = card or gpus()[TYPICAL]
    return samples_per_second(plan, text, rates) / samples_per_second(alone, share, rates)


def _with_forecast(candidate: Candidate, exact: Forecast, setting: Setting) -> Candidate:
    """The candidate with the bytes of its own forecast."""
    pool, host = exact.tier("pool").bytes, exact.tier("host").bytes
    source = f"a forecast of this plan{counted_by(setting.counted_by)}"
    if (caching := caching_bytes(candidate.plan)) > pool:
        source += f": {CACHING} more than a step's {gib(pool)}"
        pool = caching
    margin = setting.budget.margin.bytes
    doubt = margin_for(candidate.plan, pool, margin) - margin
    if doubt and pool <= setting.budget.cap_bytes:  # beyond it there is nothing to doubt
        pool = min(pool + doubt, setting.budget.cap_bytes)
        source += ", and what such plans took beyond theirs and the margin"
    needs = Bytes(bytes=pool, basis="forecast", source=source)
    verdict, why = verdict_of(candidate.plan, pool, host, setting.budget, setting.spills)
    update = {"needs": needs, "host_bytes": host, "verdict": verdict, "why_not": why}
    return candidate.model_copy(update=update)


def _scaled(choice: Choice, best: Candidate, share: float) -> Choice:
    """The choice with its best plan as forecast, and the others corrected by the same `share`."""

    def scaled(candidate: Candidate) -> Candidate:
        needs = candidate.needs.model_copy(update={"bytes": round(share * candidate.needs.bytes)})
        return candidate.model_copy(update={"needs": needs})

    others = tuple(scaled(candidate) for candidate in choice.considered[1:])
    ladder = tuple(scaled(candidate) for candidate in choice.ladder)
    better = scaled(choice.better) if choice.better else None
    alternatives = {order: scaled(one) for order, one in choice.alternatives.items()}
    return Choice(best, (best, *others), ladder, better, alternatives)
