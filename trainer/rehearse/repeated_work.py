"""Repeated work runs once under a trace; each repetition plays back its allocations.

So a picture's encoder runs once, one linear of each shape is quantised, and the passes of a step
run once. A test compares the trace with that of steps in which all of it runs.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from profiles.settings import Encoder, Quantization
from trainer.batch import Batch
from trainer.model.layers.frozen import FrozenLinear, frozen_linear
from trainer.model.segmentation_model import Features, SegmentationModel
from trainer.rehearse.compiled_layers import LayerVisits
from trainer.rehearse.memory_trace import INSIDE, WORKSPACES, MemoryTrace
from trainer.rehearse.repeated_layers import NotAlike

Tensors = Mapping[str, Tensor]


class _Seen(NamedTuple):
    """What the work did.

    Its events with their labels, and which of these are of its own blocks; the parts that began,
    with their events; its results by name: those that it made with their blocks, and those that it
    passes on with their names among its inputs.
    """

    events: list[tuple[int, int, str]]
    own: set[int]
    parts: list[tuple[int, str, str]]
    made: dict[str, tuple[int, Tensor]]
    passed: dict[str, str]


class Played(NamedTuple):
    """Work that was played: its results; what stands for each block, and for each event."""

    results: dict[str, Tensor]
    blocks: dict[int, int]
    places: list[int]


class RepeatedWork:
    """Work by a key; work with the same key uses memory alike."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.trace = trace
        self.seen: dict[tuple[Any, ...], _Seen] = {}

    def first(
        self, key: tuple[Any, ...], given: Tensors, work: Callable[[], Tensors]
    ) -> dict[str, Tensor]:
        """Do the work and remember it; returns its results."""
        trace = self.trace
        start, part = len(trace.recorded), len(trace.parts)
        results = dict(work())
        events = [(block, size, trace.labels[block]) for block, size in trace.recorded[start:]]
        # cuBLAS takes its workspaces once and keeps them.
        own = {block for block, size, label in events if size > 0 and label != WORKSPACES}
        parts = [(first - start, phase, name) for first, phase, name in trace.parts[part:]]
        passed = {n: m for n, one in results.items() for m, two in given.items() if one is two}
        made = {n: self._place(t, own) for n, t in results.items() if n not in passed}
        self.seen[key] = _Seen(events, own, parts, made, passed)
        return results

    def _place(self, tensor: Tensor, own: set[int]) -> tuple[int, Tensor]:
        """The block of a result, and a tensor without memory with the result's layout in it."""
        block = self.trace.block_of(tensor)
        if block is None or block not in own:
            raise NotAlike("repeated work gave tensors that it had not made")
        return block, _laid(tensor, torch.device("meta"))

    def again(self, key: tuple[Any, ...], given: Tensors) -> dict[str, Tensor]:
        """Results like the first ones, made by playing what was remembered."""
        return self.play(key, given).results

    def play(self, key: tuple[Any, ...], given: Tensors) -> Played:
        """As `again`, with what stands for the first blocks and events."""
        seen, trace = self.seen[key], self.trace
        results: dict[int, dict[str, Tensor]] = defaultdict(dict)  # several may be views of a block
        for name, (block, like) in seen.made.items():
            results[block][name] = like
        found = {name: given[source] for name, source in seen.passed.items()}
        blocks: dict[int, int] = {}
        places: list[int] = []
        parts = deque(seen.parts)
        for place, (block, size, label) in enumerate(seen.events):
            while parts and parts[0][0] == place:
                self._part(*parts.popleft()[1:])
            places.append(len(trace.recorded))
            if block not in seen.own:
                continue
            if size > 0 and block in results:
                made = _all_laid(results[block])
                blocks[block] = _known(trace.block_of(next(iter(made.values()))))
                found |= made
            elif size > 0:
                blocks[block] = trace.take(size, label if label == INSIDE else trace.phase)
            elif block in results:
                trace.give_early(found[next(iter(results[block]))])
            else:
                trace.give(blocks[block])
        return Played(found, blocks, [*places, len(trace.recorded)])

    def _part(self, phase: str, part: str) -> None:
        if phase == part:
            self.trace.begin(phase)
        else:
            self.trace.divide(part)


class RepeatedPasses:
    """A step's passes forward and back, which run once: in the steps after it they do the same."""

    def __init__(self, trace: MemoryTrace, model: SegmentationModel, visits: LayerVisits) -> None:
        self.work, self.visits, self.start = RepeatedWork(trace), visits, 0
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def __call__(self, run: Callable[[], object]) -> None:
        """`run` the passes, or leave the model's gradients as they do."""
        if not self.work.seen:
            self.start = len(self.work.trace.recorded)
            self.work.first((), {}, lambda: self._gradients(run))
            return
        played = self.work.play((), {})
        for name, parameter in self.trained.items():
            parameter.grad = played.results.get(name)
        self.visits.repeat(self.start, played.blocks, played.places)

    def _gradients(self, run: Callable[[], object]) -> Tensors:
        run()
        return {name: p.grad for name, p in self.trained.items() if p.grad is not None}


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


def _known(block: int | None) -> int:
    assert block is not None  # what was made just now is on the card
    return block


def _all_laid(likes: Tensors) -> dict[str, Tensor]:
    """New tensors that lie in one new block, as `likes` do in theirs."""
    (name, first), *others = likes.items()
    made = {name: _laid(first, torch.device("cpu"))}
    for other, like in others:
        shape = like.shape, like.stride(), like.storage_offset()
        made[other] = made[name].as_strided(*shape)
    return made


def _laid(like: Tensor, device: torch.device) -> Tensor:
    """A new tensor that lies in a block as `like` does in its own."""
    size = like.untyped_storage().nbytes()
    if size == like.numel() * like.element_size():
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    place = torch.empty(size, dtype=torch.uint8, device=device)
    shape = like.shape, like.stride(), like.storage_offset()
    return place.view(like.dtype).as_strided(*shape)
