"""Repeated work runs once under a trace; each repetition plays back its allocations.

So a picture's encoder runs once, and one linear of each shape is quantised. A test compares the
trace with that of a step in which everything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from profiles.settings import Encoder, Quantization
from trainer.batch import Batch
from trainer.model.layers.frozen import FrozenLinear, frozen_linear
from trainer.model.segmentation_model import Features, SegmentationModel
from trainer.rehearse.memory_trace import INSIDE, WORKSPACES, MemoryTrace
from trainer.rehearse.repeated_layers import NotAlike

Tensors = Mapping[str, Tensor]


class _Seen(NamedTuple):
    """What the work did: its events with their labels, and its results by name.

    A result is a block that the work made, or the name of an input that it passes on.
    """

    events: list[tuple[int, int, str]]
    made: dict[str, tuple[int, Tensor]]
    passed: dict[str, str]


class RepeatedWork:
    """Work by a key; work with the same key uses memory alike."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.trace = trace
        self.seen: dict[tuple[Any, ...], _Seen] = {}

    def first(
        self, key: tuple[Any, ...], given: Tensors, work: Callable[[], Tensors]
    ) -> dict[str, Tensor]:
        """Do the work and remember it; returns its results."""
        start, trace = len(self.trace.recorded), self.trace
        results = dict(work())
        events = [(block, size, trace.labels[block]) for block, size in trace.recorded[start:]]
        # cuBLAS takes its workspaces once and keeps them.
        own = {block for block, size, label in events if size > 0 and label != WORKSPACES}
        passed = {n: m for n, one in results.items() for m, two in given.items() if one is two}
        made = {n: self._place(t, own) for n, t in results.items() if n not in passed}
        self.seen[key] = _Seen([event for event in events if event[0] in own], made, passed)
        return results

    def _place(self, tensor: Tensor, own: set[int]) -> tuple[int, Tensor]:
        """The block of a result, and a tensor without memory with the result's layout in it."""
        block = self.trace.block_of(tensor)
        if block is None or block not in own:
            raise NotAlike("repeated work gave tensors that it had not made")
        return block, _laid(tensor, torch.device("meta"))

    def again(self, key: tuple[Any, ...], given: Tensors) -> dict[str, Tensor]:
        """Results like the first ones, made by playing what was remembered."""
        seen = self.seen[key]
        results = dict(seen.made.values())
        blocks: dict[int, int] = {}
        made: dict[int, Tensor] = {}
        for block, size, label in seen.events:
            if size > 0 and block in results:
                made[block] = _laid(results[block], torch.device("cpu"))
            elif size > 0:
                now = label if label == INSIDE else self.trace.phase
                blocks[block] = self.trace.take(size, now)
            else:
                self.trace.give(blocks.pop(block))
        found = {name: made[block] for name, (block, _) in seen.made.items()}
        return found | {name: given[source] for name, source in seen.passed.items()}


class RepeatedEncoder:
    """`SegmentationModel.features`, where an encoder runs once and is repeated from then on.

    An encoder keeps nothing for the backward pass and does the same in each micro-batch. It first
    runs in the evaluation.
    """

    def __init__(self, trace: MemoryTrace, model: SegmentationModel) -> None:
        self.work, self.cached, self.features = RepeatedWork(trace), model.cached, model.features

    def __call__(self, encoder: Encoder, batch: Batch) -> Features:
        if encoder in self.cached:
            return self.features(encoder, batch)
        given = batch.inputs[encoder]
        key = encoder, *((tensor.shape, tensor.dtype) for tensor in given.values())
        if key in self.work.seen:
            return self.work.again(key, given)
        return self.work.first(key, given, lambda: self.features(encoder, batch))


class RepeatedLinears:
    """`frozen_linear`, where one weight of each shape is quantised and repeated from then on."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.work = RepeatedWork(trace)
        self.kinds: dict[tuple[Any, ...], type[FrozenLinear]] = {}

    def __call__(
        self, weight: Tensor, storage: Quantization, bias: Tensor | None = None
    ) -> nn.Module:
        key = weight.shape, weight.dtype, storage, bias is None
        given = {} if bias is None else {"bias": bias}
        if key in self.kinds:
            linear = self.kinds[key].__new__(self.kinds[key])
            FrozenLinear.__init__(linear, weight.shape[0], weight.shape[1], bias)
            for name, bits in self.work.again(key, given).items():
                linear.register_buffer(name, bits, persistent=False)
            return linear
        made: list[nn.Module] = []

        def quantised() -> Tensors:
            made.append(frozen_linear(weight, storage, bias))
            return dict(made[0].named_buffers())

        self.work.first(key, given, quantised)
        if isinstance(made[0], FrozenLinear):
            self.kinds[key] = type(made[0])
        return made[0]


def _laid(like: Tensor, device: torch.device) -> Tensor:
    """A new tensor that lies in a block as `like` does in its own."""
    size = like.untyped_storage().nbytes()
    if size == like.numel() * like.element_size():
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    place = torch.empty(size, dtype=torch.uint8, device=device)
    shape = like.shape, like.stride(), like.storage_offset()
    return place.view(like.dtype).as_strided(*shape)
