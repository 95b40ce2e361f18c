"""An encoder that looks at pixels runs once under a trace; then it plays what it did with memory.

It keeps nothing for the way back and does the same in each micro-batch. It runs first evaluating;
a test compares the trace with that of an encoder that always runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from profiles.settings import Encoder
from trainer.batch import Batch
from trainer.model.segmentation_model import Features, SegmentationModel
from trainer.rehearse.memory_trace import INSIDE, WORKSPACES, MemoryTrace
from trainer.rehearse.repeated_layers import NotAlike


class _Seen(NamedTuple):
    """What an encoder did: its events with their labels; its features by name, those that it made
    with their blocks, and those that it passes on with their names among the pixels."""

    events: list[tuple[int, int, str]]
    made: dict[str, tuple[int, Tensor]]
    passed: dict[str, str]


class RepeatedEncoder:
    """`SegmentationModel.features`, where an encoder runs once and is repeated from then on."""

    def __init__(self, trace: MemoryTrace, model: SegmentationModel) -> None:
        self.trace, self.cached, self.features = trace, model.cached, model.features
        self.seen: dict[tuple[Any, ...], _Seen] = {}

    def __call__(self, encoder: Encoder, batch: Batch) -> Features:
        if encoder in self.cached:
            return self.features(encoder, batch)
        given = batch.inputs[encoder]
        key = encoder, *((tensor.shape, tensor.dtype) for tensor in given.values())
        if key in self.seen:
            return self._repeat(self.seen[key], given)
        start, trace = len(self.trace.recorded), self.trace
        features = self.features(encoder, batch)
        events = [(block, size, trace.labels[block]) for block, size in trace.recorded[start:]]
        # cuBLAS takes its workspaces once and keeps them.
        own = {block for block, size, label in events if size > 0 and label != WORKSPACES}
        passed = {n: m for n, one in features.items() for m, two in given.items() if one is two}
        made = {n: self._place(t, own) for n, t in features.items() if n not in passed}
        self.seen[key] = _Seen([event for event in events if event[0] in own], made, passed)
        return features

    def _place(self, tensor: Tensor, own: set[int]) -> tuple[int, Tensor]:
        """The block of a feature, and a tensor without memory that lies in it as the feature."""
        block = self.trace.block_of(tensor)
        if block is None or block not in own:
            raise NotAlike("an encoder gave features that it had not made")
        return block, _laid(tensor, torch.device("meta"))

    def _repeat(self, seen: _Seen, given: Features) -> Features:
        features = dict(seen.made.values())
        blocks: dict[int, int] = {}
        made: dict[int, Tensor] = {}
        for block, size, label in seen.events:
            if size > 0 and block in features:
                made[block] = _laid(features[block], torch.device("cpu"))
            elif size > 0:
                now = label if label == INSIDE else self.trace.phases[-1][1]
                blocks[block] = self.trace.take(size, now)
            else:
                self.trace.give(blocks.pop(block))
        found = {name: made[block] for name, (block, _) in seen.made.items()}
        return found | {name: given[source] for name, source in seen.passed.items()}


def _laid(like: Tensor, device: torch.device) -> Tensor:
    """A new tensor that lies in a block as `like` does in its own."""
    place = torch.empty(like.untyped_storage().nbytes(), dtype=torch.uint8, device=device)
    shape = like.shape, like.stride(), like.storage_offset()
    return place.view(like.dtype).as_strided(*shape)
