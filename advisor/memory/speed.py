"""Seconds of a training step on a card: a roofline with factors from measured steps.

    seconds = max(arithmetic, launches) + fixed + copies that arithmetic does not hide

Arithmetic is the sum of matrix products (FLOP over the card's rate), dequantisation and
element-wise work (bytes over its bandwidth). The factors in `profiles/speed.json` say how much
longer a real step takes; benchmarks/speed.py computes them from profiles on an
H100 and an H200.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiles.gpus import GpuProfile, gpus
from profiles.plan import Plan
from profiles.settings import STORED_BYTES

SPEED_FILE = Path(__file__).resolve().parents[2] / "profiles" / "speed.json"
REFERENCE = "h100-sxm-80gb"


@dataclass(frozen=True)
class Factors:
    """Real time over data-sheet time, and seconds that do not depend on the card."""

    matmul: float
    dequantisation: float
    elementwise: float
    elementwise_compiled: float
    masked_attention: float  # with an explicit mask, of rows of several questions
    launch_seconds: float  # of one pass through one decoder layer, by the CPU
    launch_compiled_seconds: float
    fixed_seconds: float  # of a micro-batch
    copy: float  # share of the copies' time that shows even beside arithmetic
    error: str


@cache
def factors() -> Factors:
    """The shipped factors."""
    return Factors(**json.loads(SPEED_FILE.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Paper:
    """Data-sheet seconds of one micro-batch, and passes through a decoder layer."""

    matmul: float
    masked_attention: float
    dequantisation: float
    elementwise: float
    copies: float
    passes: int


def paper(plan: Plan, text_tokens: int, gpu: GpuProfile) -> Paper:
    """The time by data-sheet rates alone.

    A frozen linear is multiplied forward, backward for its input, and once more where the layer is
    recomputed. Host layers are copied in each direction.
    """
    decoder = plan.profile.decoder
    sample = plan.profile.most_image_tokens + text_tokens
    tokens, weights = plan.micro_batch * sample, decoder.layer_weights
    passes = 2 * decoder.layers + plan.checkpointed_layers
    attention: float = plan.micro_batch * decoder.attention_flops(sample)
    attention *= passes + 1.5 * decoder.layers
    masked = attention if plan.questions_per_picture > 1 else 0.0
    flops = decoder.linear_flops(tokens) * passes + attention - masked
    encoders = plan.profile.encoders.items()
    online = (facts.flops for name, facts in encoders if name not in plan.cached_encoders)
    flops += plan.micro_batch * sum(online)
    stored = STORED_BYTES[plan.quantization]
    widened = 0.0 if plan.quantization == "none" else weights * passes * (stored + 2 + 2)
    bandwidth = gpu.bandwidth_gb_s * 1e9
    moved = passes * decoder.moved_values(tokens) * 2
    copied = 2 * plan.host_layers * weights * stored
    return Paper(
        matmul=flops / gpu.rate_flops(plan.dtype),
        masked_attention=masked / gpu.rate_flops(plan.dtype),
        dequantisation=widened / bandwidth,
        elementwise=moved / bandwidth,
        copies=copied / (gpu.pcie_gb_s * 1e9),
        passes=passes,
    )


def seconds_of(plan: Plan, text_tokens: int, gpu: GpuProfile) -> float:
    """Seconds of one micro-batch. Raises ValueError where the card lacks the plan's dtype."""
    on_paper, known = paper(plan, text_tokens, gpu), factors()
    elementwise = known.elementwise_compiled if plan.compile else known.elementwise
    launch = known.launch_compiled_seconds if plan.compile else known.launch_seconds
    arithmetic = on_paper.matmul * known.matmul
    arithmetic += on_paper.masked_attention * known.masked_attention
    arithmetic += on_paper.dequantisation * known.dequantisation
    arithmetic += on_paper.elementwise * elementwise
    busy = max(arithmetic, launch * on_paper.passes) + known.fixed_seconds
    return busy + max(known.copy * on_paper.copies, on_paper.copies - arithmetic)


def samples_per_second(plan: Plan, text_tokens: int, gpu: GpuProfile | None) -> float:
    """Questions a second in training, if every picture has the plan's number of them.

    On the reference card where `gpu` is not known. `text_tokens` are a row's.
    """
    card = gpus()[REFERENCE] if gpu is None else gpu
    rows = plan.micro_batch * plan.processes / seconds_of(plan, text_tokens, card)
    return plan.questions_per_picture * rows
