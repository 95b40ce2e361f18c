"""What passes from the data to the model: turns of a conversation, their tokens, a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from profiles.settings import Encoder
from trainer.losses import IGNORE_LABEL


@dataclass
class Batch:
    """Right-padded samples. Each encoder's tensors are its features where cached, else pixels.

    Places are (sample, position) pairs. They are found on the CPU, so that no step has to wait for
    the GPU to learn how many there are.
    """

    input_ids: Tensor  # [B, T] int64, each image as N image tokens
    segs: Tensor  # [M, 2] places of [SEG]
    predicting: Tensor  # [n, 2] places whose next token is supervised
    answers: Tensor  # [n] int64, those next tokens
    targets: Tensor  # [M, R, R] uint8: 0 background, 1 object, 255 ignored
    inputs: dict[Encoder, dict[str, Tensor]]  # each encoder's, named and shaped by the family
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
        return replace(
            self,
            **{f.name: _changed(getattr(self, f.name), change) for f in fields(self)},
        )


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A field's value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(inner, change) for name, inner in value.items()}
    return value


@dataclass(frozen=True)
class Encoded:
    """One conversation: `labels` equal `input_ids` on supervised positions."""

    input_ids: list[int]
    labels: list[int]
    image_tokens: int  # of the input ids

    @property
    def text_tokens(self) -> int:
        """Tokens beside the picture's."""
        return len(self.input_ids) - self.image_tokens
