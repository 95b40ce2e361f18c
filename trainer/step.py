"""ONE training step. The code that trains is the code that is rehearsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from profiles.plan import Plan
from trainer.batch import Batch
from trainer.losses import LossWeights, Totals
from trainer.model.trained import GradientCheck
from trainer.phase import during

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS = LossWeights()
UPDATING = "updating"  # the phase in which an error may leave half an update


class NotFinite(RuntimeError):
    """A loss or gradient that is not a finite number; names the samples of its step."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports; means over the effective batch."""

    loss: float
    ce: float
    bce: float
    dice: float
    gradient_norm: float


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The plan's optimizer over the trained tensors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    schedule = plan.schedule
    betas = (schedule.beta1, schedule.beta2)
    if (plan.optimizer, plan.optimizer_state) == ("adamw", "fp32"):
        return torch.optim.AdamW(
            trained,
            lr=schedule.learning_rate,
            betas=betas,
            weight_decay=schedule.weight_decay,
            # One kernel for all tensors, and no temporaries of the moments' size.
            fused=plan.device == "cuda",
        )
    import bitsandbytes as bnb

    optimizer: torch.optim.Optimizer = bnb.optim.AdamW(
        trained,
        lr=schedule.learning_rate,
        betas=betas,
        weight_decay=schedule.weight_decay,
        optim_bits=8 if plan.optimizer_state == "8bit" else 32,
        is_paged=plan.optimizer == "paged_adamw",
    )
    return optimizer


def training_step(
    model: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    accelerator: Accelerator,
    check: GradientCheck | None = None,
    read: Callable[[Tensor], list[float]] = Tensor.tolist,
) -> StepResult:
    """Forward, backward and update over one effective batch's micro-batches of this process.

    Every loss is divided by the totals of the whole effective batch over all processes, so the
    update depends on neither micro-batch nor process count. `read` waits for all work of the group
    and returns the numbers of a tensor. No parameter has changed if it raises, or NotFinite is
    raised.
    """
    totals = total_of(batches, accelerator)
    sums = accumulate(model, batches, totals, accelerator)
    norm = clip(optimizer, plan, accelerator)
    total, ce, bce, dice, size = read(torch.stack([*sums, norm.float()]))
    # In fp16 the gradient scaler skips updates by itself, until its scale is right.
    bad = "loss" if not isfinite(total) else "gradient" if not isfinite(size) else ""
    if bad == "loss" or (bad and accelerator.scaler is None):
        optimizer.zero_grad(set_to_none=True)
        names = ", ".join(name for batch in batches for name in batch.names)
        raise NotFinite(f"the {bad} is not finite; samples of this step: {names}")
    # Clipping by a norm that is not finite has made the finite gradients zero. The scaler skips
    # that update, and the gradient check would find nothing in it.
    if check is not None and not check.done and isfinite(size):
        check(masks=totals.masks > 0)
    with during(UPDATING):
        update(optimizer)
    return StepResult(
        loss=total,
        ce=ce / max(1, totals.tokens),
        bce=bce / max(1, totals.masks),
        dice=dice / max(1, totals.masks),
        gradient_norm=size,
    )


# All computation is in the functions below. A rehearsal without a GPU cannot read any number, so it
# calls them one by one in the same order.


def total_of(batches: Sequence[Batch], accelerator: Accelerator) -> Totals:
    """Supervised tokens and masks of the whole effective batch, over all processes."""
    tokens, masks = (sum(len(getattr(b, name)) for b in batches) for name in ("answers", "targets"))
    if accelerator.num_processes > 1:
        # On the CPU: a process that is lost is noticed before its share is missing.
        tokens, masks = accelerator.reduce(torch.tensor([tokens, masks]), "sum").tolist()
    return Totals(tokens=tokens, masks=masks)


def accumulate(
    model: nn.Module, batches: Sequence[Batch], totals: Totals, accelerator: Accelerator
) -> Tensor:
    """Gradients of all micro-batches; returns the sums [4] of loss, ce, bce and dice."""
    sums = torch.zeros(4, device=accelerator.device)
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            losses = model(batch.to(accelerator.device))
            loss = losses.weighted(totals, WEIGHTS)
            # Data-parallel processes average their gradients; this makes it the sum again.
            accelerator.backward(loss * accelerator.num_processes)
        parts = [loss, losses.ce, losses.bce, losses.dice]
        sums += torch.stack([part.detach().float() for part in parts])
    reduced: Tensor = accelerator.reduce(sums, "sum")
    return reduced


def clip(optimizer: torch.optim.Optimizer, plan: Plan, accelerator: Accelerator) -> Tensor:
    """Scale the gradients down to the plan's norm; returns the norm before."""
    norm: Tensor = accelerator.clip_grad_norm_(trained_by(optimizer), plan.schedule.grad_clip)
    return norm


def trained_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What it trains. The model's thousands of modules would be walked through for it."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def update(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step; frees the gradients."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
