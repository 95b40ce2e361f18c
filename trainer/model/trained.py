"""The allow-list of trained tensors, and the proof that exactly those receive a gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from profiles.plan import Plan
from trainer.model.segmentation_model import SegmentationModel


class GradientError(RuntimeError):
    """A tensor of the list got no gradient, or a tensor outside of it got one."""


def trained_names(model: SegmentationModel, plan: Plan) -> list[str]:
    """Names of the parameters that the plan trains."""
    prefixes = tuple(prefix for part in plan.train for prefix in model.prefixes_of(part))
    return [
        name
        for name, _ in model.named_parameters()
        if ".lora_" in name or (name.startswith(prefixes) and not name.startswith(model.unread))
    ]


def mark_trained(model: SegmentationModel, plan: Plan, dtype: torch.dtype = torch.float32) -> None:
    """Set `requires_grad` from the allow-list alone; trained tensors are kept in `dtype`."""
    listed = set(trained_names(model, plan))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in listed)
        if name in listed:
            parameter.data = parameter.data.to(dtype)


class GradientCheck:
    """Looks at the first backward passes until every listed tensor has had a gradient.

    The gradient of LoRA's A is exactly zero while B is zero, that is until the first update with
    a non-zero learning rate. So the check waits with A for a non-zero B, and with parts that only
    masks train for a pass with masks.
    """

    def __init__(self, model: SegmentationModel, listed: Iterable[str]) -> None:
        self.of_masks = tuple(p for part in model.of_masks for p in model.prefixes_of(part))
        self.parameters = dict(model.named_parameters())
        self.listed = frozenset(listed)
        # A candidate may never be chosen, so the check does not wait for candidates.
        self.waiting = {name for name in self.listed if not name.startswith(model.in_turn)}

    @property
    def done(self) -> bool:
        """Whether every listed tensor has been seen with a gradient."""
        return not self.waiting

    def __call__(self, masks: bool = True) -> None:
        """Check the gradients of one backward pass, over samples with `masks` or without any.

        Raises GradientError naming tensors.
        """
        excused = {name for name in self.waiting if self._excused(name, masks)}
        stray = [
            name
            for name, parameter in self.parameters.items()
            if parameter.grad is not None and name not in self.listed
        ]
        dead = [name for name in self.waiting - excused if self._is_zero(name)]
        if stray or dead:
            raise GradientError(
                f"trained tensors without a gradient: {sorted(dead) or 'none'}; "
                f"gradients that no plan asked for: {sorted(stray) or 'none'}"
            )
        self.waiting = excused

    def _is_zero(self, name: str) -> bool:
        gradient = self.parameters[name].grad
        return gradient is None or not bool(gradient.any())

    def _excused(self, name: str, masks: bool) -> bool:
        if not masks and name.startswith(self.of_masks):
            return True
        other = name.replace(".lora_A.", ".lora_B.")
        return other != name and not bool(self.parameters[other].any())
