"""What passes from the data to the model: turns of a conversation, their tokens, a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainer.losses import (
    IGNORE_LABEL,
)


@dataclass
class Batch:
    """Right-padded samples. Each encoder's input is its features where cached, else pixels.

    Places are (sample, position) pairs. They are found on the CPU, so that no step has to wait for
    the GPU to learn how many there are.
    """

    input_ids: Tensor  # [B, T] int64, each image as N image tokens
    segs: Tensor  # [M, 2] places of [SEG]
    predicting: Tensor  # [n, 2] places whose next token is supervised
    answers: Tensor  # [n] int64, those next tokens
    targets: Tensor  # [M, R, R] uint8: 0 background, 1 object, 255 ignored
    clip: Tensor  # [B, N, C] features or [B, 3, P, P] pixels
    sam: Tensor  # [B, E, G, G] features or [B, 3, S, S] pixels
    names: tuple[str, ...] = ()  # of the samples, for error messages

    @classmethod
    def of(cls, input_ids: Tensor, labels: Tensor, seg_token_id: int, **rest: Any) -> Batch:
        """From ids [B, T] and labels [B, T] (IGNORE_LABEL where nothing is supervised)."""
        predicting = (labels[:, 1:] != IGNORE_LABEL).nonzero()
        answers = labels[:, 1:][predicting[:, 0], predicting[:, 1]]
        segs = (input_ids == seg_token_id).nonzero()
        return cls(input_ids, segs, predicting, answers, **rest)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU run beside its work."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return Batch(**changed)


@dataclass(frozen=True)
class Encoded:
    """One conversation: `labels` equal `input_ids` on supervised positions."""

    input_ids: list[int]
    labels: list[int]
