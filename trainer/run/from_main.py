"""Sends what rank 0 has read to every rank: only its machine needs a run's checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from trainer.run.checkpoint import trained_parameters
from trainer.run.nested_state import flat, nested


def trained_from_main(model: nn.Module, accelerator: Accelerator) -> None:
    """Give the trained tensors the values that they have in rank 0."""
    if accelerator.num_processes > 1:
        for parameter in trained_parameters(model).values():
            dist.broadcast(parameter.data, 0)


def state_from_main(state: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Rank 0's nested state of training; its tensors pass over the card one at a time."""
    if accelerator.num_processes == 1:
        return state
    mine, rest = flat(state)
    sent: list[Any] = [{name: (value.shape, value.dtype) for name, value in mine.items()}, rest]
    broadcast_object_list(sent)
    tensors: dict[str, Tensor] = {}
    for name, (shape, dtype) in sent[0].items():
        if accelerator.is_main_process:
            value = mine.pop(name).to(accelerator.device)
        else:
            value = torch.empty(shape, dtype=dtype, device=accelerator.device)
        dist.broadcast(value, 0)
        tensors[name] = value.cpu()
    found: dict[str, Any] = nested(tensors, sent[1])
    return found
