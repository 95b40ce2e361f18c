"""Why each setting of a chosen plan has its value: a Reason per automatic choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from advisor.choice.candidate import Reason
from advisor.choice.preference import STORAGES, behind, fastest_of
from advisor.choice.search import Found, largest_micro_batch
from advisor.machine.budget import Basis, Budget
from advisor.machine.gpu import Gpu
from advisor.report.plan_words import lora_text, storage_text
from advisor.report.row_reasons import measured_rows, seed_reasons, tested_reason
from advisor.request import Request
from profiles.batches import micro_batches
from profiles.grid import TEXT_TOKENS, nearest
from profiles.levers import SETTINGS, priced, value_text
from profiles.models import model_profile
from profiles.overrides import assigned
from profiles.pictures import limits_for
from profiles.plan import Plan
from profiles.settings import Quantization
from profiles.sizes import GIB, gib, mib
from profiles.tested import TestedRow
from profiles.text import counted, two_digits

# The steps up from the published r=8 on q and v, with alpha twice the rank.
NEXT_ADAPTERS: tuple[dict[str, Any], ...] = (
    {"rank": 16, "alpha": 32},
    {"rank": 64, "alpha": 128},
    {"targets": "all-linear"},
)


def plan_reasons(
    found: Found,
    gpu: Gpu,
    budget: Budget,
    rows: Sequence[TestedRow],
    overrides: Iterable[str],
    whole: str,
) -> list[Reason]:
    """Reasons for the chosen plan; a setting that the user gave has none.

    `whole`: why the card has no expandable segments; empty where it has.
    """
    plan = found.choice.best.plan
    measured = measured_rows(plan.model, rows)
    reasons = [
        *_batch_reasons(found, budget),
        dtype_reason(plan, gpu),
        _storage_reason(found),
        *([_adapter_reason(found, budget)] if plan.lora is not None else []),
        *seed_reasons(plan, rows),
        *(reason for lever in priced("forecast") if (reason := _lever_reason(found, lever))),
        *(reason for lever in priced("rows") if (reason := tested_reason(plan, measured, lever))),
        *([_picture_reason(found)] if plan.profile.tokens_vary else []),
        allocator_reason(plan, whole),
    ]
    given = set(assigned(overrides))
    given |= {name.partition(".")[0] for name in given}
    return [reason for reason in reasons if reason.setting not in given]


def _batch_reasons(found: Found, budget: Budget) -> Iterator[Reason]:
    best, plan = found.choice.best, found.choice.best.plan
    because = f"takes {gib(best.needs.bytes)} of {gib(budget.usable.bytes)} usable with samples of "
    because += f"{found.text_tokens} text tokens"
    if found.counted_by:
        because += f" (counted by {found.counted_by})"
    most = largest_micro_batch(plan, found.scales, budget)
    if most is not None and most > plan.micro_batch:
        because += f"; {_larger_batches(plan, most)}"
    yield Reason(
        setting="micro_batch", value=str(plan.micro_batch), because=because, basis=best.needs.basis
    )
    passes = counted(plan.accumulation, "forward pass", "forward passes")
    because = f"kept: micro-batch {plan.micro_batch} x {passes}"
    if plan.questions_per_picture > 1:
        because += f", where every picture has {plan.questions_per_picture} questions"
    value = str(plan.effective_batch)
    yield Reason(setting="effective_batch", value=value, because=because, basis="exact")
    if plan.questions_per_picture > 1:
        yield _sharing_reason(found)


def _larger_batches(plan: Plan, most: int) -> str:
    """Why the micro-batch is not larger, although up to `most` would fit."""
    even = micro_batches(plan, most)[-1]
    if even > plan.micro_batch:
        return f"up to {even} would fit as well, and be no better"
    if plan.questions_per_picture > 1:
        return f"{most} would fit as well, and take as many passes"
    return f"{most} would fit as well, but not divide {plan.effective_batch}"


def _sharing_reason(found: Found) -> Reason:
    """How much faster questions are that share the prefix of their picture, and what it costs."""
    questions = found.choice.best.plan.questions_per_picture
    because = (
        f"up to {questions} questions share the system prompt and their picture: "
        f"{found.sharing_gain:.1f} times the questions a second if all pictures have {questions}. "
        "A step then sees fewer pictures: from several wordings of one target a picture, lisa-tiny "
        "learnt less in the same number of epochs (docs/speed.md). In the time of one question a "
        f"picture, {found.sharing_gain:.1f} times the epochs can be trained (--epochs); "
        "--set questions_per_picture=1 asks one"
    )
    return Reason(
        setting="questions_per_picture", value=str(questions), because=because, basis="forecast"
    )


def _instead(plan: Plan) -> str:
    """What the plan could do with the memory that it saves."""
    wanted = ["less rounded weights"] if plan.quantization != "none" else []
    wanted += ["fewer layers in host memory"] if plan.host_layers else []
    wanted += ["fewer layers checkpointed"] if plan.checkpointed_layers else []
    return f", or buys {' or '.join(wanted)}" if wanted else ""


def _picture_reason(found: Found) -> Reason:
    """What the limit of a picture's size costs, against three quarters of its side."""
    best = found.choice.best.plan
    plan = best.with_pictures_of(_largest(found))
    tokens = plan.profile.most_image_tokens
    fewer = tokens * 9 // 16
    limits = limits_for(plan, fewer)
    now, then = (
        found.scales.speed(plan.with_pictures_of(n)).samples_per_second for n in (tokens, fewer)
    )
    because = f"a picture takes up to {tokens} tokens"
    cached = sum(plan.profile.encoders[name].cached_bytes for name in plan.cached_encoders)
    if cached:
        because += f", and its cached features up to {mib(cached)} of disk"
    saved = _bytes_of_tokens(found, tokens - fewer)
    if saved is not None:
        because += (
            f"; --set max_pixels={limits['max_pixels']} ({fewer} tokens) saves this plan about "
            f"{gib(saved)} and trains it {then / now:.1f} times as fast{_instead(best)}; "
            "it changes what the model sees"
        )
    return Reason(
        setting="max_pixels", value=str(best.max_pixels), because=because, basis="forecast"
    )


def _largest(found: Found) -> int | None:
    """Tokens of the data's largest picture, where a forecast looked at it."""
    return found.forecast.image_tokens if found.forecast is not None else None


def _bytes_of_tokens(found: Found, count: int) -> int | None:
    """Bytes of the pool that `count` tokens in every row take, estimated by text tokens."""
    best, (short, long) = found.choice.best, TEXT_TOKENS
    at_short, at_long, here = (nearest(best.plan, n) for n in (short, long, found.text_tokens))
    if at_short is None or at_long is None or here is None:
        return None
    token = (at_long.pool_bytes - at_short.pool_bytes) / (long - short)
    return round(count * token * best.needs.bytes / here.pool_bytes)


def _storage_reason(found: Found) -> Reason:
    """Why the base weights are kept as they are."""
    best = found.choice.best
    storage = best.plan.quantization
    finer = STORAGES[: STORAGES.index(storage)]
    because = "fits without rounding the base weights"
    if finer:
        against = [text for name in finer if (text := _against_finer(found, name))]
        because = "; ".join(against) or "your settings rule out storage that rounds less"
    return Reason(setting="quantization", value=storage, because=because, basis="forecast")


def _against_finer(found: Found, storage: Quantization) -> str:
    """What speaks against keeping the base weights as `storage`."""
    best, considered = found.choice.best, found.choice.considered
    tried = [one for one in considered if one.plan.quantization == storage]
    fitting = [one for one in tried if one.verdict == "FITS"]
    if not fitting:
        least = min(tried, key=lambda one: one.needs.bytes, default=None)
        if least is None:
            return ""
        name = storage_text(least.plan)
        return f"{name} needs {gib(least.needs.bytes)} or more ({least.why_not})"
    on_card = [one for one in fitting if not one.plan.host_layers]
    quick = max(on_card or fitting, key=lambda one: one.speed.samples_per_second)
    name, speed = storage_text(quick.plan), quick.speed.samples_per_second
    fastest = fastest_of(one for one in considered if one.verdict == "FITS")
    if on_card and (slow := behind(speed, fastest)):
        return f"{name} would train {slow} plan; it may cost at most a tenth"
    slower = 1 - speed / best.speed.samples_per_second
    pace = f"{slower:.0%} slower" if slower >= 0.005 else ""
    if on_card:
        more = gib(max(0, quick.needs.bytes - best.needs.bytes))
        return f"{name} would train {pace}" if pace else f"{name} takes {more} more"
    streamed = f"{name} fits only with {counted(quick.plan.host_layers, 'layer')} in host memory"
    return f"{streamed} ({pace})" if pace else streamed


def _adapter_reason(found: Found, budget: Budget) -> Reason:
    """Why the published adapters, and what the next larger ones take and cost."""
    best = found.choice.best
    lora = best.plan.lora
    assert lora is not None
    prices = []
    for more in NEXT_ADAPTERS:
        plan = best.plan.model_copy(update={"lora": lora.model_copy(update=more)})
        needs = _more_bytes(plan, found)
        if needs is None:
            continue
        price = f"{gib(needs)} more" if needs >= 0.005 * GIB else "nothing more at the peak"
        speeds = found.scales.speed(plan), best.speed
        slower = 1 - speeds[0].samples_per_second / speeds[1].samples_per_second
        price += f", {slower:.0%} slower" if slower >= 0.005 else ", as fast"
        if best.needs.bytes + needs > budget.usable.bytes:
            price += ", too large with this plan"
        prices.append(f"{lora_text(plan)}: {price}")
    because = "as published for LISA (arXiv:2308.00692); no study of segmentation shows that more "
    because += "helps, though language models gained from adapters on all linears, whatever the "
    because += f"rank (QLoRA, arXiv:2305.14314). {'; '.join(prices)}"
    return Reason(setting="lora", value=lora_text(best.plan), because=because, basis="policy")


def _more_bytes(plan: Plan, found: Found) -> int | None:
    """Bytes that `plan` takes beyond the chosen plan, both by shipped forecasts.

    The chosen plan's own figure will not do: it may be a tested row's, or not interpolated.
    """
    text, largest = found.text_tokens, _largest(found)
    both = plan.with_pictures_of(largest), found.choice.best.plan.with_pictures_of(largest)
    there, here = (nearest(one, text) for one in both)
    if there is None or here is None:
        return None
    return max(0, there.pool_bytes - here.pool_bytes)


def dtype_reason(plan: Plan, gpu: Gpu) -> Reason:
    """Why the plan computes in its dtype on that card."""
    basis: Basis = "exact"
    if gpu.compute_capability is None:
        because, basis = "compute capability unknown: 8.0 or later is assumed", "policy"
    else:
        version = "{}.{}".format(*gpu.compute_capability)
        able = "computes in bf16" if gpu.bf16 else "has no bf16 arithmetic (from 8.0)"
        because = f"{gpu.name} {able}: compute capability {version}"
    return Reason(setting="dtype", value=plan.dtype, because=because, basis=basis)


def allocator_reason(plan: Plan, whole: str) -> Reason:
    """Why the CUDA allocator is set as it is; `whole`: why expandable segments are left out."""
    because = whole or "keeps the pool close to what the tensors take"
    return Reason(
        setting="allocator", value=plan.allocator or "default", because=because, basis="policy"
    )


def _lever_reason(found: Found, lever: str) -> Reason | None:
    """What `lever` saves and costs on this model and card; None if it is not pulled."""
    best = found.choice.best
    undone = SETTINGS[lever].off
    value = getattr(best.plan, lever)
    if value == undone:
        return None
    if lever != "host_layers" and best.plan.host_layers and lever != "compile":
        because = "host layers need it: they are copied again when they are recomputed"
        if lever == "host_embeddings":
            because = "moved to host memory before decoder layers: it costs next to nothing"
        text = value_text(lever, value)
        return Reason(setting=lever, value=text, because=because, basis="policy")
    without = best.plan.model_copy(update={lever: undone})
    needs, here = found.scales.needs(without), found.scales.needs(best.plan)
    if needs is None or here is None:
        return None
    saved = needs[0].bytes - here[0].bytes
    because = f"saves {gib(saved)}" if saved > 0 else "saves nothing"
    here_seconds, there_seconds = (
        best.plan.effective_batch / speed.samples_per_second
        for speed in (best.speed, found.scales.speed(without))
    )
    change = here_seconds / there_seconds - 1
    other = value_text(lever, undone)
    if abs(change) < 0.005:
        because += f", as fast as with {other}"
    else:
        seconds = f"{two_digits(abs(here_seconds - there_seconds))} s a step ({abs(change):.0%})"
        because += f", {'costs' if change > 0 else 'gains'} {seconds} against {other}"
    return Reason(setting=lever, value=value_text(lever, value), because=because, basis="forecast")


def card_reasons(request: Request, gpu: Gpu, model: str) -> list[Reason]:
    """Why this model, and why this card of several, where the user named neither."""
    reasons = []
    if request.model is None:
        because = f"already {model_profile(model).start}: the better start for few pictures; "
        because += "--model names another (docs/models.md)"
        reasons.append(Reason(setting="model", value=model, because=because, basis="policy"))
    if len(request.machine.gpus) > 1 and not request.what_if:
        because = f"the most free memory of {len(request.machine.gpus)} visible GPUs"
        if request.cards_each > 1:
            because = f"the least free memory of the {request.cards_each} GPUs that run together"
        reasons.append(Reason(setting="gpu", value=gpu.name, because=because, basis="exact"))
    return reasons
