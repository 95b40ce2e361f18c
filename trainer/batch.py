"""What passes from the data to the model: tokens of a row, and rows as a micro-batch.

A row is about one picture. It is a conversation, or several questions that share their prefix:
system prompt and picture come once, and each question has a block of its own behind them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from profiles.settings import Encoder
from trainer.ignored import IGNORE_LABEL


@dataclass
class Batch:
    """Right-padded samples. Each encoder's tensors are its features where cached, else pixels.

    Places are (sample, position) pairs. The CPU finds them, so that no step has to wait for the GPU
    to count them.
    """

    input_ids: Tensor  # [B, T] int64, each image as N image tokens
    segs: Tensor  # [M, 2] places of [SEG]
    predicting: Tensor  # [n, 2] places whose next token is supervised
    answers: Tensor  # [n] int64, those next tokens
    targets: Tensor  # [M, R, R] uint8: 0 background, 1 object, 255 ignored
    inputs: dict[Encoder, dict[str, Tensor]]  # each encoder's, named and shaped by the family
    names: tuple[str, ...] = ()  # of the samples, for error messages
    blocks: Tensor | None = None  # [B, T] 0: prefix, n: the n-th question; None: conversations
    places: Tensor | None = None  # [B, T] of each token in a row of its question alone

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
        """The batch in pinned memory, from which copies to a GPU overlap with its work."""
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
    """Tokens of one row: `labels` equal `input_ids` on supervised positions.

    `starts` are those of the blocks of several questions that share what is before them.
    """

    input_ids: list[int]
    labels: list[int]
    image_tokens: int  # of the input ids
    starts: tuple[int, ...] = ()

    @property
    def text_tokens(self) -> int:
        """Tokens beside the picture's."""
        return len(self.input_ids) - self.image_tokens

    @property
    def questions(self) -> int:
        """Questions in it; a conversation counts as one."""
        return len(self.starts) or 1

    def blocks(self) -> list[int]:
        """The block of each token: 0 for the prefix, n for the n-th question."""
        return [bisect_right(self.starts, place) for place in range(len(self.input_ids))]

    def places(self) -> list[int]:
        """The position that each token would have in a row of its question alone."""
        if not self.starts:
            return list(range(len(self.input_ids)))
        prefix, ends = self.starts[0], (*self.starts[1:], len(self.input_ids))
        blocks = zip(self.starts, ends, strict=True)
        return [*range(prefix), *(prefix + n for start, end in blocks for n in range(end - start))]


def sharing_prefix(rows: Sequence[Encoded]) -> Encoded:
    """Rows of single questions about one picture as one row with one prefix.

    Each row was tokenised by itself, so no question's tokens change. The prefix is the longest that
    all share, without any token that predicts an answer: these belong to the question's block.
    """
    if len(rows) == 1:
        return rows[0]
    prefix = min(_before_answer(row) for row in rows)
    first = rows[0].input_ids
    for row in rows[1:]:
        prefix = shared_tokens(first[:prefix], row.input_ids)
    ids, labels, starts = first[:prefix], rows[0].labels[:prefix], []
    for row in rows:
        starts.append(len(ids))
        ids, labels = ids + row.input_ids[prefix:], labels + row.labels[prefix:]
    return Encoded(ids, labels, rows[0].image_tokens, tuple(starts))


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda n: one[:n] != other[:n])


def _before_answer(row: Encoded) -> int:
    """Tokens before the one whose state predicts the first that is supervised (or the next)."""
    supervised = (n for n, label in enumerate(row.labels) if label != IGNORE_LABEL)
    return next(supervised, len(row.labels)) - 1
