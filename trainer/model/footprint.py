"""What a plan needs on the card at least, before any activation is computed, counted exactly.

The model is built as planned, by the code that builds it for training, on torch's meta device,
where a tensor has a shape and no memory. A plan that cannot fit is refused before anything is
loaded. Activations come on top: this is a floor, not a forecast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from profiles.levers import next_relief
from profiles.plan import Plan
from profiles.sizes import gib
from trainer.model.build import build
from trainer.model.layers.host import host_tensors
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.weights import ShapesAlone

# bitsandbytes keeps the moments of smaller tensors in fp32 (`min_8bit_size`), and pages only those
# of 100 000 values and more (`Optimizer8bit.get_state_buffer`).
SMALLEST_8BIT, SMALLEST_PAGED, MOMENT_BLOCK = 4096, 100_000, 256


class DoesNotFit(RuntimeError):
    """A plan needs more memory than there is; the message says how much of each."""


def optimizer_bytes(plan: Plan, count: int) -> int:
    """Adam's two moments of a trained tensor of `count` values, on the card."""
    if plan.optimizer == "paged_adamw" and count >= SMALLEST_PAGED:
        return 0  # the driver moves them to host memory when the card is full
    if plan.optimizer_state == "8bit" and count >= SMALLEST_8BIT:
        return 2 * (count + 4 * -(-count // MOMENT_BLOCK))
    return 2 * 4 * count


def needed_bytes(plan: Plan, tokenizer: ConversationTokenizer) -> dict[str, int]:
    """Bytes by component: frozen weights, trained tensors, gradients, optimizer; host memory."""
    model = build(plan, tokenizer, torch.device("meta"), ShapesAlone())
    card = [tensor for _, tensor in model.on_card()]
    trained = [tensor.numel() for tensor in card if tensor.requires_grad]
    return {
        "frozen": sum(_size(tensor) for tensor in card if not tensor.requires_grad),
        "trained": 4 * sum(trained),
        "gradients": 4 * sum(trained),
        "optimizer": sum(optimizer_bytes(plan, count) for count in trained),
        "host": sum(map(_size, host_tensors(model))),
    }


def component_of(model: SegmentationModel, name: str, tensor: Tensor) -> str:
    """The component of a model's tensor that stays on the card."""
    if tensor.requires_grad:
        parts = {"lora_": "adapters", "rows": "trained rows", "mask_decoder": "mask decoder"}
        return next((part for mark, part in parts.items() if mark in name), "other trained")
    encoders = tuple(f"{place}." for place in model.encoders_at.values())
    return "encoders" if name.startswith(encoders) else "frozen weights"


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check_fits(plan: Plan, tokenizer: ConversationTokenizer, usable: int, host_usable: int) -> None:
    """Raise DoesNotFit if the floor is above `usable` bytes of card or `host_usable` of host."""
    needed = needed_bytes(plan, tokenizer)
    host = needed.pop("host")
    total = sum(needed.values())
    if total > usable:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in needed.items())
        raise DoesNotFit(
            f"the plan needs at least {gib(total)} on the card before any activation ({parts}); "
            f"{gib(usable)} are free\n"
            f"    hint: {next_relief(plan)}"
        )
    if host > host_usable:
        raise DoesNotFit(
            f"the plan keeps {gib(host)} in host memory, and {gib(host_usable)} are available\n"
            "    hint: lower host_layers, or set host_embeddings=false"
        )
