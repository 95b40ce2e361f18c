"""Accelerate, set up for a plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
)
from torch import nn

from profiles.environment import own_card
from profiles.plan import Plan
from trainer.hardware import NO_CARD
from trainer.parallel.lost import STARTING, set_up_nccl
from trainer.parallel.ranks import Ranks
from trainer.parallel.trained_only import leave_out_frozen


def make_accelerator(plan: Plan, log_with: Sequence[Any] | None = None) -> Accelerator:
    """Accelerate on the plan's device, with its trackers.

    The model does its own casts; only fp16 uses accelerate's gradient scaler.
    """
    local, cards = own_card(), torch.cuda.device_count()
    if plan.device == "cuda" and not cards:
        raise ValueError(NO_CARD)
    if plan.device == "cuda" and cards <= local:
        raise ValueError(
            f"process {local + 1} of this machine has no card: torch sees {cards}\n"
            f"    hint: start {cards} a machine: --set processes or --nproc_per_node"
        )
    _found_group(plan)
    accelerator = Accelerator(
        mixed_precision="fp16" if plan.dtype == "fp16" else "no",
        kwargs_handlers=[
            AutocastKwargs(enabled=False),
            # Gradients live in the buckets that are exchanged, not beside them.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
        cpu=plan.device == "cpu",
        log_with=log_with,
        dataloader_config=DataLoaderConfiguration(split_batches=False),
    )
    if plan.device == "cpu":
        # Of several it would be cpu:1, say: torch copies to that what is on the CPU already.
        accelerator.state.device = torch.device("cpu")
    if accelerator.num_processes != plan.processes:
        raise ValueError(
            f"the plan's processes: {plan.processes}; started: {accelerator.num_processes}"
            f"\n    hint: --set processes={accelerator.num_processes}, or leave the launcher out: "
            "lisa-train starts the plan's processes"
        )
    return accelerator


def _found_group(plan: Plan) -> None:
    """Create the process group of a launch, for accelerate to use.

    CPU tensors go through gloo, which raises an error if a process is lost; NCCL can only end this
    process. So only gradients go through NCCL, and everything that decides something through gloo.
    """
    ranks = Ranks.here()
    if ranks.group_store is None or dist.is_initialized():
        return
    if plan.device == "cuda":
        set_up_nccl(os.environ)
    dist.init_process_group(
        "gloo" if plan.device == "cpu" else "cpu:gloo,cuda:nccl", timeout=STARTING,
        rank=ranks.rank, world_size=ranks.count, store=ranks.group_store,
    )  # fmt: skip


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until every process is here. accelerate's own barrier would wait inside of NCCL."""
    accelerator.reduce(torch.zeros(1))


def between_processes(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """Model and optimizer as accelerate prepares them; trained tensors alone are exchanged."""
    if accelerator.num_processes > 1:
        leave_out_frozen(model)
    prepared: tuple[Any, Any] = accelerator.prepare(model, optimizer)
    # A sum of two has only one order; on a GPU other parts of a step vary anyway.
    if accelerator.device.type == "cpu" and accelerator.num_processes > 2:
        from trainer.parallel.in_order import add_in_order

        add_in_order(prepared[0])
    return prepared
