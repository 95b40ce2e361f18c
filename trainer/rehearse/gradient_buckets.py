"""What DistributedDataParallel keeps beside the gradients, counted by its own rule.

DDP cannot run on fake tensors: its reducer is C++ and reads real storages. But its memory depends
on sizes alone. In the last pass of a step every gradient moves into a flat bucket and from then on
is a view of it (`gradient_as_bucket_view`); earlier passes gather gradients beside the buckets.
Buckets live as long as the training. Before it, trained tensors are sent in flat pieces that are no
larger. NCCL's own buffers are outside torch's pool.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch.distributed as dist
from torch import Tensor, nn

from profiles.exchange import BUCKET_BYTES
from trainer.rehearse.memory_trace import MemoryTrace

LABEL = "gradient buckets"


class GradientBuckets:
    """The buckets of a model's trained tensors, in a trace."""

    def __init__(self, trace: MemoryTrace, model: nn.Module, passes: int) -> None:
        """As DDP begins: one bucket for all, since the gradients' order is not known yet.

        `passes`: forward passes a step.
        """
        self.trace, self.passes = trace, passes
        # The last layers have their gradients first.
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trained: list[Tensor] = list(reversed(trained))
        self.blocks = self._taken([sys.maxsize])
        self.seen: Counter[int] = Counter()  # gradients so far, by parameter
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._move)

    def _move(self, parameter: Tensor) -> None:
        """A gradient is complete; after the last pass it lies only in its bucket."""
        self.seen[id(parameter)] += 1
        if self.seen[id(parameter)] % self.passes == 0 and parameter.grad is not None:
            self.trace.give_early(parameter.grad)

    def rebuild(self) -> None:
        """As DDP does before its second step: small buckets, sent while others are computed."""
        for block in self.blocks:
            self.trace.give(block)
        self.blocks = self._taken([dist._DEFAULT_FIRST_BUCKET_BYTES, BUCKET_BYTES])

    def _taken(self, limits: list[int]) -> list[int]:
        groups, _ = dist._compute_bucket_assignment_by_size(self.trained, limits)
        sizes = [sum(self.trained[place].nbytes for place in group) for group in groups]
        return [self.trace.take(size, LABEL) for size in sizes]
