"""Bytes of a plan's training step without a GPU: runs the trainer's fake rehearsal in a child.

Four tiers, each with an error of its own (`profiles/forecast_errors.json`, from
benchmarks/forecast.py): tensors, as torch counts them; the allocator's pool, by replaying every
request; the process, as NVML shows it; host memory. The rehearsal runs at one sample's size, the
worst of a data set or the largest that the plan allows: with the mean, a run would fail later.

Of several processes the first three are of one of them, on its own card: all have the same. Host
memory is that of one machine's processes together, which share what lives there.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from advisor.machine.budget import ERRORS_FILE, margin_for
from advisor.memory.allocator import PoolUse, replay
from advisor.memory.card import Card
from advisor.memory.forecast_cache import Answer, keep, key_of, read, read_events, read_step
from advisor.memory.worst_sample import Worst
from advisor.rehearsal import BadQuestion, RehearsalFailed, rehearsed
from profiles.batches import micro_batches
from profiles.compiled_layers import moves_of
from profiles.exchange import exchange, nccl_bytes
from profiles.grid import caching_bytes, nearest
from profiles.host_memory import batch_bytes, libraries_bytes
from profiles.measurement import DataCounts, Measurement, Timeline
from profiles.pictures import limits_for
from profiles.places import cache_folder
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.sizes import gib
from profiles.splits import NEEDED, located
from profiles.tested import Verdict
from profiles.text import counted

COMPILED = "compiled"  # rows whose decoder layers are
NO_CARD = Card()
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # for a child that needs none
# For a child that first looks at every visit of a training: a full recipe has 100 000.
DATA_SECONDS = 1200

TierName = Literal["tensors", "pool", "process", "host"]


class Tier(Frozen):
    """One of the four figures."""

    name: TierName
    bytes: int
    source: str
    error: str = Field("", description="how far such figures were off, and in which rows")


class Forecast(Frozen):
    """The memory that a step of the plan takes, on a card of one compute capability."""

    schema_version: Literal[1] = 1
    plan: Plan
    verdict: Verdict = Field(description="under the cap; UNKNOWN without one, or without figures")
    reason: str = Field("", description="of the verdict")
    compute_capability: tuple[int, int]
    text_tokens: int = Field(description="of every sample, the worst one's")
    counted_by: str = Field("", description="which tokenizer counted a data set's text, if any")
    image_tokens: int | None = Field(None, description="of every picture, the largest one's")
    masks: int
    answer_tokens: int | None = Field(None, description="supervised; null: five for each mask")
    data: DataCounts | None = Field(None, description="how much a data set holds")
    cap_bytes: int | None = Field(None, description="what the pool may take")
    tiers: tuple[Tier, ...] = ()
    load_peak_bytes: int | None = None
    phases: dict[str, int] = Field(default_factory=dict, description="most tensor bytes in each")
    live_at_peak: dict[str, int] = Field(default_factory=dict, description="by component")
    fragmentation: float | None = Field(None, description="share of the pool beside the tensors")
    assumed: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 fits (or no cap was named), 1 does not fit, 3 no figure."""
        if not self.tiers:
            return 3
        return 1 if self.verdict in ("OOM", "SPILLS") else 0

    def tier(self, name: TierName) -> Tier:
        """The tier called `name`. Raises KeyError where there is no figure."""
        return {tier.name: tier for tier in self.tiers}[name]


def forecast(
    plan: Plan,
    worst: Worst,
    card: Card = NO_CARD,
    cache: Path | None = None,
) -> Forecast:
    """Forecast `plan` at its worst sample; verdict under the card's cap on the pool, if any.

    TIGHT is what fits under the cap, but not with the card's margin left.

    A forecast that was made before, with the same code, versions and question, is read from the
    `cache` folder. Raises RehearsalFailed and, about the data, BadQuestion.
    """
    compute_capability, outside = card.compute_capability, _outside(plan)
    if outside:
        return _unknown(plan, worst, compute_capability, outside)
    if worst.data is not None and located(worst.data) is None:  # before all of it is looked through
        raise BadQuestion(f"{worst.data}: holds no ReasonSeg data; needed: {NEEDED}")
    answer = _answer(plan, worst, compute_capability, cache)
    measurement = answer.measurement
    if measurement.peak_allocated_bytes is None:
        return _unknown(plan, worst, compute_capability, measurement.error)
    found = interpret(measurement, answer.events, card, worst.answering)
    data = worst.data if worst.text_tokens is None else None
    return found.model_copy(update={"counted_by": counted_by(plan, data)})


def counted_by(plan: Plan, data: Path | None) -> str:
    """Which tokenizer counts the text of `data`; empty without any."""
    if data is None:
        return ""
    own = plan.profile.packaged or plan.weights not in ("default", "random")
    return "the model's own tokenizer" if own else plan.profile.counts


def fitting_micro_batch(found: Forecast) -> int | None:
    """The largest micro-batch below the plan's that should fit where this forecast does not.

    The shipped forecasts say by how much a smaller one takes less; None where they do not reach,
    or not even one sample fits.
    """
    here = nearest(found.plan, found.text_tokens)
    if here is None or found.cap_bytes is None or not found.tiers:
        return None
    scale = found.tier("pool").bytes / here.pool_bytes
    for size in reversed(micro_batches(found.plan, found.plan.micro_batch - 1)):
        smaller = nearest(found.plan.model_copy(update={"micro_batch": size}), found.text_tokens)
        if smaller is not None and scale * smaller.pool_bytes <= found.cap_bytes:
            return size
    return None


def step_by_component(
    plan: Plan,
    worst: Worst,
    card: Card = NO_CARD,
    cache: Path | None = None,
) -> Timeline | None:
    """The step that `forecast` counts, moment by moment; None where it has no figure.

    Raises as `forecast` does.
    """
    return None if _outside(plan) else _answer(plan, worst, card.compute_capability, cache).step


def interpret(
    measurement: Measurement,
    events: list[tuple[int, int]],
    card: Card = NO_CARD,
    answering: bool = False,
) -> Forecast:
    """The forecast that follows from a fake rehearsal's measurement and events."""
    plan = measurement.plan
    expandable = plan.segments == "expandable"
    free = replay(events, expandable)
    tensors, pool = free.peak_allocated, free.peak_reserved
    if plan.compile and not moves_of(plan):
        tensors, pool = _less_than_plain(measurement, free)
    saved = free.peak_reserved - pool
    process = pool + card.context.bytes(_pins(plan)) + nccl_bytes(plan)
    host = _host_bytes(measurement)
    tiers = _tiers(plan, card, (tensors, pool, process, host), measured_errors(plan, answering))
    cap_bytes, margin_bytes = card.cap_for(plan), card.margin_bytes
    margin_bytes = margin_for(plan, max(pool, caching := caching_bytes(plan)), margin_bytes)
    verdict, reason = _verdict(pool, saved, events, expandable, cap_bytes, margin_bytes)
    if caching > pool and cap_bytes is not None:
        verdict, reason = _caching_verdict(caching, cap_bytes, margin_bytes)
    short = card.host.shortage(plan, host) if card.host is not None else ""
    if verdict != "OOM" and short:
        verdict, reason = "OOM", short
    return Forecast(
        plan=plan,
        verdict=verdict,
        reason=reason,
        compute_capability=card.compute_capability,
        text_tokens=measurement.text_tokens[1],
        image_tokens=measurement.image_tokens,
        masks=measurement.masks,
        answer_tokens=measurement.answer_tokens,
        data=measurement.data,
        cap_bytes=cap_bytes,
        tiers=tiers,
        load_peak_bytes=measurement.load_peak_bytes,
        phases=measurement.phases,
        live_at_peak=measurement.live_at_peak,
        fragmentation=round(1 - tensors / pool, 4),
        assumed=measurement.assumed,
        versions=measurement.versions,
    )


def _tiers(
    plan: Plan, card: Card, sizes: tuple[int, int, int, int], errors: dict[str, str]
) -> tuple[Tier, ...]:
    """The four figures, each with its source."""
    sources: dict[TierName, str] = {
        "tensors": "as the allocator counts them (max_memory_allocated)",
        "pool": f"allocator replayed, {plan.segments} segments",
        "process": _beside_pool(plan, card),
        "host": _host_source(plan),
    }
    return tuple(
        Tier(name=name, bytes=size, source=source, error=errors.get(name, ""))
        for (name, source), size in zip(sources.items(), sizes, strict=True)
    )


def _less_than_plain(measurement: Measurement, free: PoolUse) -> tuple[int, int]:
    """Bytes of the tensors and of the pool where the code of compiled layers is not known.

    Compiled layers take less than the plain ones that were replayed, and the pool shrinks with them
    where they peak, in the backward pass. It always stays at least 1 % above the tensors, the least
    that was seen.
    """
    tensors = measurement.peak_allocated_bytes or 0
    less = free.peak_allocated - measurement.phases.get("backward", 0)
    return tensors, max(round(1.01 * tensors), free.peak_reserved - max(0, less))


def group_of(segments: str, compiled: bool) -> str:
    """The group of rows whose errors are published for such a plan, by its kind of pool."""
    if compiled and segments == "expandable":
        return COMPILED
    return f"{COMPILED}, {segments} segments" if compiled else f"{segments} segments"


def measured_errors(plan: Plan, answering: bool = False) -> dict[str, str]:
    """How far forecasts of such plans were off, in words, by tier."""
    kind = "answering" if answering else group_of(plan.segments, plan.compile)
    if plan.dtype != "bf16":
        return dict.fromkeys(get_args(TierName), f"no measured row computes in {plan.dtype}")
    if not ERRORS_FILE.exists():
        return {}
    errors: dict[str, dict[str, str]] = json.loads(ERRORS_FILE.read_text(encoding="utf-8"))
    return errors.get(kind, {})


def _caching_verdict(caching: int, cap_bytes: int, margin_bytes: int) -> tuple[Verdict, str]:
    """The verdict and its reason if building the feature cache takes more than a step."""
    reason = f"building the feature cache takes {gib(caching)} of {gib(cap_bytes)}"
    if caching > cap_bytes:
        return "OOM", reason
    if cap_bytes - caching < margin_bytes:
        return "TIGHT", f"{reason}, inside the margin of {gib(margin_bytes)}"
    return "FITS", f"{reason}, more than a step"


def _verdict(
    pool: int,
    saved: int,
    events: list[tuple[int, int]],
    expandable: bool,
    cap_bytes: int | None,
    margin_bytes: int,
) -> tuple[Verdict, str]:
    if cap_bytes is None:
        return "UNKNOWN", "no card was named (--gpu, --vram)"
    reason = f"the pool grows to {gib(pool)} of {gib(cap_bytes)}"
    if pool > cap_bytes:
        capped = replay(events, expandable, cap_bytes + saved)
        if capped.failed is not None:
            # A compiled plan's pool is not the one that is replayed: neither are its figures.
            return "OOM", reason if saved else f"{reason}: {capped.failed}"
        released = counted(capped.retries, "release")
        return "TIGHT", f"{reason}, after {released} of unused memory"
    if cap_bytes - pool < margin_bytes:
        return "TIGHT", f"{reason}, inside the margin of {gib(margin_bytes)}"
    if not margin_bytes:
        return "FITS", reason
    less = f"{gib(cap_bytes)} less a margin of {gib(margin_bytes)}"
    return "FITS", f"needs {gib(pool)} of {gib(cap_bytes - margin_bytes)} usable ({less})"


def _host_bytes(measurement: Measurement) -> int:
    """Peak resident set of a machine's training processes on Linux; shared pages count once."""
    plan = measurement.plan
    shown = plan.model_copy(update=limits_for(plan, measurement.image_tokens))
    own = libraries_bytes(plan) + batch_bytes(shown, measurement.masks)
    return plan.local_processes * own + (measurement.host_bytes or 0)


def _beside_pool(plan: Plan, card: Card) -> str:
    """What the process takes, and where its figures come from."""
    pinned = "" if _pins(plan) else " without pinned host tensors"
    source = f"the pool, CUDA context and libraries{pinned}, {card.context.source}"
    return f"{source}; {exchange().nccl_source}" if nccl_bytes(plan) else source


def _pins(plan: Plan) -> bool:
    """Whether parts of the model lie pinned in host memory."""
    return plan.host_embeddings or plan.host_layers > 0


def _host_source(plan: Plan) -> str:
    count = plan.local_processes
    if count == 1:
        return "resident set: libraries, what lives on the host, batches"
    return f"resident sets of {count} processes, what lives on the host counted once"


def _outside(plan: Plan) -> str:
    """Why a plan cannot be forecast, as far as that is known beforehand; else empty."""
    if plan.device != "cuda":
        return "the plan trains on the CPU, where there is no card to count for"
    return ""


def _unknown(
    plan: Plan, worst: Worst, compute_capability: tuple[int, int], reason: str
) -> Forecast:
    return Forecast(
        plan=plan,
        verdict="UNKNOWN",
        reason=f"outside the forecast's validity: {reason}",
        compute_capability=compute_capability,
        text_tokens=worst.text_tokens or plan.tokens.max_text_tokens,
        masks=worst.masks or plan.most_masks,
    )


def _answer(
    plan: Plan, worst: Worst, compute_capability: tuple[int, int], cache: Path | None
) -> Answer:
    """What the fake rehearsal finds, now or before. Raises RehearsalFailed and BadQuestion."""
    folder = cache_folder() / "forecasts" if cache is None else cache
    worst = _with_sizes(plan, worst)
    key = key_of(plan, worst, compute_capability)
    answer = read(folder, key)
    if answer is None:
        answer = _ask(plan, worst, compute_capability, folder)
        keep(folder, key, answer)
    return answer


def _ask(plan: Plan, worst: Worst, compute_capability: tuple[int, int], folder: Path) -> Answer:
    """Run the fake rehearsal. Raises RehearsalFailed and BadQuestion."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        options = [*_options(plan, worst, compute_capability), "--events", str(place / "events")]
        options += ["--timeline", str(place / "asked.step")]
        seconds = DATA_SECONDS if "--data-dir" in options else None
        measurement = rehearsed(plan, options, NO_GPU, folder, seconds)
        try:
            return Answer(measurement, read_events(place / "events"), read_step(place, "asked"))
        except (ValueError, OSError) as error:
            raise RehearsalFailed(f"the rehearsal left no list of requests ({error})") from None


def _with_sizes(plan: Plan, worst: Worst) -> Worst:
    """The sample with the plan's limits for every size that neither the user nor data gives."""
    if worst.data is not None and worst.text_tokens is None:
        return worst
    return replace(
        worst,
        text_tokens=worst.text_tokens or plan.tokens.max_text_tokens,
        masks=worst.masks or plan.most_masks,
        answer_tokens=worst.answer_tokens or plan.most_answer_tokens,
    )


def _options(plan: Plan, worst: Worst, compute_capability: tuple[int, int]) -> list[str]:
    """The fake rehearsal's options."""
    options = ["--fake", "--compute-capability", ".".join(map(str, compute_capability))]
    options += ["--answer"] * worst.answering
    options += ["--text-tokens", str(worst.text_tokens or plan.tokens.max_text_tokens)]
    if worst.data is not None and worst.text_tokens is None:
        options += ["--data-dir", str(worst.data.resolve())]
    counts = (
        ("--masks", worst.masks),
        ("--answer-tokens", worst.answer_tokens),
        ("--image-tokens", worst.image_tokens),
    )
    for name, count in counts:
        options += [name, str(count)] if count is not None else []
    return options
