"""What DistributedDataParallel keeps beside the gradients, counted by its own rule.

DDP cannot run on fake tensors: its reducer is C++ and reads real storages. What it takes follows
from sizes alone. It copies every gradient into a flat bucket, exchanges the bucket, and copies the
sum back, so trained tensors have two gradients. Buckets live from the start to the end; before
training, trained tensors are sent in flat pieces of no more bytes. NCCL's own buffers are outside
of torch's pool.
"""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch import Tensor, nn

from profiles.sizes import MIB
from trainer.rehearse.memory_trace import MemoryTrace

LABEL = "gradient buckets"
BUCKET_BYTES = 25 * MIB  # DDP's default, bucket_cap_mb


class GradientBuckets:
    """The buckets of a model's trained tensors, in a trace."""

    def __init__(self, trace: MemoryTrace, model: nn.Module) -> None:
        """As DDP begins: one bucket of all, as the order of the gradients is not known."""
        self.trace = trace
        # The last layers have their gradients first.
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trained: list[Tensor] = list(reversed(trained))
        self.blocks = self._taken([sys.maxsize])

    def rebuild(self) -> None:
        """As DDP does before its second step: small ones, to be sent while others are computed."""
        for block in self.blocks:
            self.trace.give(block)
        self.blocks = self._taken([dist._DEFAULT_FIRST_BUCKET_BYTES, BUCKET_BYTES])

    def _taken(self, limits: list[int]) -> list[int]:
        groups, _ = dist._compute_bucket_assignment_by_size(self.trained, limits)
        sizes = [sum(_bytes(self.trained[place]) for place in group) for group in groups]
        return [self.trace.take(size, LABEL) for size in sizes]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
