"""Gradients of several processes, summed in a fixed order."""

# No postponed annotations: torch compares those of a hook with its own classes.

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


def add_in_order(wrapped: DistributedDataParallel) -> None:
    """Sum gradients in the order of the processes, whatever their place in DDP's buckets.

    gloo's ring sums them in an order that depends on their place, and DDP changes the places after
    its first step: a resumed run of three processes would differ in the last bits from one without
    a break. Meanwhile each process holds the gradients of all.
    """
    wrapped.register_comm_hook(None, mean_in_order)


def mean_in_order(_: None, bucket: dist.GradBucket) -> Future[Tensor]:
    """The mean of a bucket [N] over the processes."""
    mine = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    mean: Future[Tensor] = Future()
    mean.set_result(sum(parts[1:], parts[0]) / len(parts))
    return mean
