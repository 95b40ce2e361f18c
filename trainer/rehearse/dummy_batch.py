"""Dummy samples of a given length, for rehearsing a step: true shapes, random values."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from profiles.families import EncoderFacts
from profiles.plan import Plan
from profiles.settings import PREFIX_TOKENS, Encoder
from trainer.batch import Batch, Encoded
from trainer.data.samples import batch_of, length_step
from trainer.ignored import IGNORE_LABEL
from trainer.model.build import TORCH_DTYPES
from trainer.model.tokenizer import ConversationTokenizer

ANSWER_TOKENS = 5  # of an answer such as "Sure, [SEG].</s>"


class MadeUp:
    """Micro-batches under a plan, `text_tokens` (least, most) and `masks` a row.

    Of the text `answer_tokens` are supervised, by default ANSWER_TOKENS for each mask. Without
    `values` nothing is drawn for pixels and features: of ten pictures that takes seconds.
    """

    def __init__(
        self,
        plan: Plan,
        tokenizer: ConversationTokenizer,
        text_tokens: tuple[int, int],
        masks: int,
        answer_tokens: int | None = None,
        values: bool = True,
    ) -> None:
        self.values = values
        self.plan, self.tokenizer = plan, tokenizer
        self.text_tokens, self.masks = text_tokens, masks
        self.answer_tokens = answer_tokens or ANSWER_TOKENS * masks
        self.generator = torch.Generator().manual_seed(plan.seed)

    def step(self) -> list[Batch]:
        """The micro-batches of one step, at most two: more peak no higher."""
        return [self.batch() for _ in range(min(2, self.plan.accumulation))]

    def batch(self) -> Batch:
        """A micro-batch of rows whose lengths are drawn within the limits."""
        least, most = self.text_tokens
        drawn = torch.randint(least, most + 1, (self.plan.micro_batch,), generator=self.generator)
        rows = [self._row(text) for text in drawn.tolist()]
        rest = {"targets": self._targets(), "inputs": self._inputs()}
        return batch_of(rows, self.tokenizer, length_step(self.plan), **rest)

    def _row(self, text: int) -> Encoded:
        """System prompt, picture, and the questions with their answers, all as long."""
        picture, questions = self.plan.profile.most_image_tokens, self.plan.questions_per_picture
        length = picture + text
        ids = torch.randint(100, 600, (length,), generator=self.generator).tolist()
        ids[8 : 8 + picture] = [self.tokenizer.image_id] * picture
        labels = [IGNORE_LABEL] * length
        prefix = picture + (min(PREFIX_TOKENS, text // 2) if questions > 1 else 0)
        bounds = [prefix + (length - prefix) * n // questions for n in range(questions + 1)]
        for number, (start, end) in enumerate(pairwise(bounds)):
            for mask in range(len(range(number, self.masks, questions))):
                ids[end - ANSWER_TOKENS * mask - 3] = self.tokenizer.seg_id
            first = max(start + 1, end - -(-self.answer_tokens // questions))
            labels[first:end] = ids[first:end]
        return Encoded(ids, labels, picture, tuple(bounds[:-1]) if questions > 1 else ())

    def _targets(self) -> Tensor:
        side = self.plan.mask_loss_resolution
        shape = self.plan.micro_batch * self.masks, side, side
        return torch.randint(0, 2, shape, generator=self.generator, dtype=torch.uint8)

    def _inputs(self) -> dict[Encoder, dict[str, Tensor]]:
        """Features where the plan caches them, pixels elsewhere, of the largest picture."""
        found = {}
        # In alphabetical order: so the random numbers have always been drawn.
        for encoder, facts in sorted(self.plan.profile.encoders.items(), key=lambda i: i[1].name):
            cached = encoder in self.plan.cached_encoders
            dtype = TORCH_DTYPES[self.plan.dtype] if cached else torch.float32
            shapes = facts.features if cached else facts.pixels
            found[encoder] = {name: self._random(s, dtype) for name, s in shapes.items()}
            found[encoder] |= numbers_of(facts, self.plan.micro_batch)
        return found

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A micro-batch of such tensors of one picture, joined."""
        joined = self.plan.micro_batch * shape[0], *shape[1:]
        if not self.values:
            return torch.empty(joined, dtype=dtype)
        return torch.randn(joined, generator=self.generator, dtype=dtype)


def numbers_of(facts: EncoderFacts, pictures: int) -> dict[str, Tensor]:
    """The whole numbers, such as grids, that come with a number of the largest pictures."""
    return {name: torch.tensor([row] * pictures) for name, row in facts.numbers.items()}
