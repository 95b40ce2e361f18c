"""Seconds of a training step on a card: a roofline with factors from measured steps.

    seconds = max(arithmetic, launches) + encoders + fixed + copies that arithmetic does not hide

Arithmetic is the sum of matrix products and attention (FLOP over the card's rate), dequantisation
and element-wise work (bytes over its bandwidth). Launches are the CPU's: they depend on the machine
and not on its card. The factors in `profiles/speed.json` say how much longer a real step takes;
benchmarks/speed.py computes them from profiles and timed rows on an H100 and an H200.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from profiles.batches import full_rows, passes
from profiles.exchange import step_exchange_seconds
from profiles.families import EncoderFacts, ModelProfile
from profiles.gpus import GpuProfile, gpus
from profiles.plan import Plan
from profiles.settings import STORED_BYTES, Lora

SPEED_FILE = Path(__file__).resolve().parents[2] / "profiles" / "speed.json"
REFERENCE = "h100-sxm-80gb"
TYPICAL = "rtx-3060-12gb"  # whose rates are used for a card that is not known
# More bandwidth than an H100's does not help: an H200 took as long for the same dequantisation and
# element-wise work (benchmarks/profile.jsonl).
USED_GB_S = 3350
PIXEL_BYTES = 4


@dataclass(frozen=True)
class Factors:
    """Real time over data-sheet time, and seconds that do not depend on the card."""

    matmul: float
    attention: float
    masked_attention: float  # with an explicit mask, of rows of several questions
    dequantisation: float
    fp8: float  # products in FP8, as a share of those in the plan's dtype
    fp8_codes: float  # of activations, gradients and weights, which FP8 is made from and into
    elementwise: float
    elementwise_compiled: float
    launch_seconds: float  # of one pass through one decoder layer, by the CPU
    launch_compiled_seconds: float
    launch_quantised_seconds: float  # the share of both that is due to quantised weights
    launch_fp8_seconds: float  # what products in FP8 add to those of quantised weights
    launch_encoder_seconds: float  # of one block of a frozen encoder
    fixed_seconds: float  # of a micro-batch
    copy: float  # from pinned memory
    unpinned_gb_s: float  # an encoder's pixels and features, while a cache is built
    loop: float  # from update to update, over a rehearsed step whose card rested before it
    trial_loop: float  # over one that followed another, as rehearsals time them since 2026-11-30
    entry_seconds: float  # of a feature cache's entry, beside the encoder
    sample_seconds: float  # of a row read from disk, by the CPU
    scoring_seconds: float  # of a mask in an evaluation, by the CPU
    save_seconds: float  # of a checkpoint
    workers_seconds: float  # until data workers give the first rows of an epoch
    start_seconds: float  # libraries and model, until the first evaluation is done
    launches_least: float  # of a machine that was timed, beside the usual
    launches_most: float
    timed: list[str]  # cards
    worst: float  # error of a set-aside step, as a share
    error: str


@cache
def factors() -> Factors:
    """The shipped factors."""
    return Factors(**json.loads(SPEED_FILE.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Pace:
    """Arithmetic and launches relative to the usual, for slower or faster cards and CPUs."""

    arithmetic: float = 1.0
    launches: float = 1.0


USUAL = Pace()


def paces(gpu: GpuProfile) -> tuple[Pace, Pace]:
    """The fastest and the slowest pace expected of that card, in any machine.

    The products of a card that was never timed may reach its data sheet's rate, or half of it.
    """
    known = factors()
    fast, slow = 1 - known.worst, 1 + known.worst
    if gpu.key not in known.timed:
        fast, slow = 1 / known.matmul, 2 / known.matmul
    return Pace(fast, known.launches_least), Pace(slow, known.launches_most)


class SheetTime(NamedTuple):
    """Data-sheet seconds of one micro-batch, and passes through a decoder layer."""

    matmul: float
    attention: float
    masked_attention: float
    dequantisation: float
    codes: float  # of activations, gradients and weights, where products are in FP8
    elementwise: float
    adapters: float  # beyond the published ones
    layer_copy: float  # of one layer from host memory to the card
    head_copy: float
    passes: int


def sheet_time(plan: Plan, text_tokens: int, gpu: GpuProfile, forward: bool = False) -> SheetTime:
    """The time at data-sheet rates; `forward`: without a backward pass.

    A frozen linear is multiplied forward, backward for its input, and once more where the layer is
    recomputed.
    """
    profile = plan.profile
    decoder, sample = profile.decoder, profile.most_image_tokens + text_tokens
    tokens, weights = plan.micro_batch * sample, decoder.layer_weights
    backward = 0 if forward else decoder.layers
    passes = decoder.layers + backward + (0 if forward else plan.checkpointed_layers)
    attention: float = plan.micro_batch * decoder.attention_flops(sample)
    attention *= passes + 1.5 * backward
    masked = attention if plan.questions_per_picture > 1 else 0.0
    stored = STORED_BYTES[plan.quantization]
    widened = 0.0 if plan.quantization == "none" else weights * passes * (stored + 2 + 2)
    rate, pcie = gpu.rate_flops(plan.dtype), gpu.pcie_gb_s * 1e9
    bandwidth = _bandwidth(gpu)
    moved = passes * 2 * decoder.moved_values(tokens)
    head = 2 * profile.vocabulary_rows * decoder.hidden if plan.host_embeddings else 0
    adapters = _adapter_bytes(profile, plan.lora, plan.compile)
    return SheetTime(
        matmul=decoder.linear_flops(tokens) * passes / rate,
        attention=(attention - masked) / rate,
        masked_attention=masked / rate,
        dequantisation=widened / bandwidth,
        codes=_coded_bytes(plan, tokens, passes, backward) / bandwidth,
        elementwise=moved / bandwidth,
        adapters=passes * tokens * adapters / bandwidth,
        layer_copy=weights * stored / pcie,
        head_copy=head / pcie,
        passes=passes,
    )


@lru_cache(64)
def _adapter_bytes(profile: ModelProfile, lora: Lora | None, compiled: bool) -> float:
    """Bytes that the adapters of one layer move for a position and pass, beyond the published ones.

    Each is a third of those of a pass forward, another one that recomputes it and the pass back.
    Compiled, a pass forward writes a copy of the input and adds to the output (2 bytes and 4), and
    the pass back reads and writes the input's gradient (6). Plain, dropout reads, writes and masks
    the input (5) and a product reads it (2); the output is copied and added to (8). Back, a product
    reads the input and one writes its gradient (4), which the mask changes (5) and which is added
    to the linear's (6); two products read the output's gradient (4).
    """
    inputs, outputs = (10 / 3, 8 / 3) if compiled else (29 / 3, 20 / 3)

    def moved(lora: Lora | None) -> float:
        linears = profile.decoder.adapted(lora) if lora is not None else []
        return sum(inputs * wide + outputs * out for wide, out in linears)

    return max(0, moved(lora) - moved(Lora()))


def _coded_bytes(plan: Plan, tokens: int, passes: int, backward: int) -> float:
    """Bytes read and written to make FP8 codes of what products take, in all passes of a step.

    Each value of 2 bytes becomes a code of one. In compiled layers q, k and v share their input's
    codes, and so do gate and up; each linear has codes of its own gradient. Weights are read as
    stored, in every pass.
    """
    decoder = plan.profile.decoder
    hidden = (2 if plan.compile else 5) * decoder.hidden
    inputs = hidden + decoder.query_channels + decoder.intermediate
    values = inputs * (passes - backward) + decoder.linear_outputs * backward
    weights = decoder.layer_weights * passes * (STORED_BYTES[plan.quantization] + 1)
    return 3 * tokens * values + weights


def _bandwidth(gpu: GpuProfile) -> float:
    """Bytes a second that element-wise work can use."""
    return min(gpu.bandwidth_gb_s, USED_GB_S) * 1e9


def seconds_of(plan: Plan, text_tokens: int, gpu: GpuProfile, pace: Pace = USUAL) -> float:
    """Seconds of one micro-batch. Raises ValueError where the card lacks the plan's dtype."""
    return _seconds(plan, sheet_time(plan, text_tokens, gpu), gpu, pace)


def forward_seconds(plan: Plan, text_tokens: int, gpu: GpuProfile, pace: Pace = USUAL) -> float:
    """Seconds of one micro-batch of an evaluation: as `seconds_of`, forward alone."""
    return _seconds(plan, sheet_time(plan, text_tokens, gpu, forward=True), gpu, pace)


def _seconds(plan: Plan, on_paper: SheetTime, gpu: GpuProfile, pace: Pace) -> float:
    known = factors()
    arithmetic = on_paper.matmul * known.matmul
    if plan.products == "fp8":
        arithmetic = arithmetic * known.fp8 + on_paper.codes * known.fp8_codes
    else:
        arithmetic += on_paper.dequantisation * known.dequantisation
    arithmetic += on_paper.attention * known.attention
    arithmetic += on_paper.masked_attention * known.masked_attention
    elementwise = known.elementwise_compiled if plan.compile else known.elementwise
    arithmetic += on_paper.elementwise * elementwise
    arithmetic += on_paper.adapters * known.elementwise_compiled  # all their bytes are counted
    launch = _launch_seconds(plan)
    busy = max(pace.arithmetic * arithmetic, pace.launches * launch * on_paper.passes)
    online = [f for name, f in plan.profile.encoders.items() if name not in plan.cached_encoders]
    encoders = sum(_encoding(facts, plan, gpu, plan.micro_batch, pace) for facts in online)
    fixed = known.fixed_seconds + known.copy * on_paper.head_copy
    return busy + encoders + fixed + _shown_copies(plan, on_paper, busy)


def _launch_seconds(plan: Plan) -> float:
    """Seconds in which the CPU starts the kernels of one pass through a decoder layer.

    For products in the plan's dtype, quantised weights are first widened; for FP8 one kernel makes
    codes from weights of any storage.
    """
    known = factors()
    found = known.launch_compiled_seconds if plan.compile else known.launch_seconds
    if plan.products == "fp8":
        return found + known.launch_fp8_seconds
    return found - (known.launch_quantised_seconds if plan.quantization == "none" else 0.0)


def _shown_copies(plan: Plan, on_paper: SheetTime, busy: float) -> float:
    """Seconds of the host layers' copies that arithmetic does not hide.

    Host layers are spread evenly, so a copy has the time until the next one of them is due. Layers
    pass once in the forward pass; all of their other passes are in the backward pass.
    """
    if not plan.host_layers:
        return 0.0
    layers = plan.profile.decoder.layers
    copy = factors().copy * on_paper.layer_copy
    forth = busy / on_paper.passes * layers / plan.host_layers
    back = busy / plan.host_layers - forth
    times = [forth, back] if on_paper.passes > layers else [forth]
    return plan.host_layers * sum(max(0.0, copy - time) for time in times)


def _encoding(facts: EncoderFacts, plan: Plan, gpu: GpuProfile, pictures: int, pace: Pace) -> float:
    """Seconds that a frozen encoder takes for a batch of pictures that are on the card."""
    known = factors()
    arithmetic = known.matmul * facts.flops / gpu.rate_flops(plan.dtype)
    arithmetic += facts.moved_bytes / _bandwidth(gpu)
    launches = known.launch_encoder_seconds * facts.blocks
    return max(pace.arithmetic * arithmetic * pictures, pace.launches * launches)


def encoder_seconds(facts: EncoderFacts, plan: Plan, gpu: GpuProfile, pace: Pace = USUAL) -> float:
    """Seconds that a frozen encoder takes for one picture of a cache, both copies included."""
    moved = PIXEL_BYTES * facts.pixel_values + facts.cached_bytes
    return _encoding(facts, plan, gpu, 1, pace) + moved / (factors().unpinned_gb_s * 1e9)


@lru_cache(8192)  # as estimates: of two preferences or sizes of cards a choice asks for the same
def samples_per_second(plan: Plan, text_tokens: int, gpu: GpuProfile | None) -> float:
    """Questions a second in training, if every picture has the plan's number of questions.

    `text_tokens` are a row's; `gpu` None: the reference card. Several processes wait for the one
    with the most rows, and exchange gradients.
    """
    card = gpus()[REFERENCE] if gpu is None else gpu
    seconds = seconds_of(plan, text_tokens, card)
    if plan.processes == 1:
        return plan.questions_per_picture * plan.micro_batch / seconds
    rows = full_rows(plan.effective_batch, plan.questions_per_picture)
    cuts = passes(rows, plan.micro_batch, plan.processes)
    return plan.effective_batch / (cuts * seconds + step_exchange_seconds(plan))
