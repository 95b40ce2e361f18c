"""Bytes of host memory that a training process takes, beside the tensors that live there.

What libraries take is read off the rows of benchmarks/forecast_rows.jsonl, less what is counted.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from profiles.families import FEATURE_BYTES, ModelProfile
from profiles.plan import Plan
from profiles.settings import STORED_BYTES, Encoder
from profiles.sizes import GIB

LIBRARIES_BYTES = round(2.04 * GIB)  # 1.93 to 2.15 GiB were seen
LOOKUP_BYTES = round(0.09 * GIB)  # buffers of a table looked up and a head streamed
COMPILER_BYTES = round(0.10 * GIB)  # Triton and Inductor
TOGETHER = 2  # micro-batches that a rehearsal makes before it pins them, at most


def libraries_bytes(plan: Plan) -> int:
    """What libraries and their buffers take in one process."""
    found = LIBRARIES_BYTES + plan.profile.code_bytes
    return found + LOOKUP_BYTES * plan.host_embeddings + COMPILER_BYTES * plan.compile


def batch_bytes(plan: Plan, masks: int | None = None) -> int:
    """Host bytes of one process's batches for an optimizer step, with `masks` masks a row.

    All micro-batches of a step are pinned, and up to two also lie there unpinned: a rehearsal makes
    two at a time, and training has one beside the samples that it is joined from. Each data worker
    makes one more and has two ready.
    """
    unpinned = min(TOGETHER, plan.accumulation) + plan.workers
    pinned = plan.accumulation + 2 * plan.workers
    sizes = _sizes(plan, masks)
    return unpinned * sum(sizes) + pinned * sum(map(pinned_size, sizes))


def pinned_size(size: int) -> int:
    """Bytes of the block that torch pins for `size` bytes: a power of two."""
    return 1 << (size - 1).bit_length()


def timing_bytes(plan: Plan, positions: int) -> int:
    """Bytes that one process pins at most while Inductor times the kernels of compiled layers.

    To time a kernel that changes its input, Inductor keeps a copy of the input, in host memory if a
    copy on the card would raise the peak. In the backward pass this is a gradient: the one inside
    the MLP, or in attention where the MLP's is not changed in place.
    """
    decoder, lora = plan.profile.decoder, plan.lora
    all_linear = lora is not None and lora.targets == "all-linear"
    attention = all_linear and plan.checkpointed_layers == decoder.layers
    width = decoder.query_channels if attention else decoder.intermediate
    return pinned_size(2 * positions * width) if plan.compile else 0


def pinned_bytes(plan: Plan) -> int:
    """Bytes of a machine's host memory that a run pins: what lives there, and a step's batches."""
    batches = plan.accumulation * sum(map(pinned_size, _sizes(plan, None)))
    return shared_host_bytes(plan) + plan.local_processes * batches


def shared_host_bytes(plan: Plan) -> int:
    """Bytes of layers and tables in host memory; a machine's processes share one copy."""
    profile = plan.profile
    decoder, rows = profile.decoder, profile.vocabulary_rows
    layers = plan.host_layers * decoder.layer_weights * STORED_BYTES[plan.quantization]
    tables = (1 if decoder.tied_head else 2) * rows * decoder.hidden * FEATURE_BYTES
    return round(layers) + plan.host_embeddings * tables


def _sizes(plan: Plan, masks: int | None) -> list[int]:
    """Bytes of each tensor of a micro-batch; masks have a byte a value."""
    number = plan.micro_batch * (masks or plan.questions_per_picture)
    targets = number * plan.mask_loss_resolution**2
    return [*_picture_bytes(plan.profile, plan.cached_encoders, plan.micro_batch), targets]


@lru_cache(256)
def _picture_bytes(profile: ModelProfile, cached: tuple[Encoder, ...], count: int) -> list[int]:
    """Bytes of each tensor that holds `count` pictures."""
    tensors = []
    for name, facts in profile.encoders.items():
        shapes = facts.features if name in cached else facts.pixels
        each = FEATURE_BYTES if name in cached else 4
        tensors += [count * prod(shape) * each for shape in shapes.values()]
    return tensors
