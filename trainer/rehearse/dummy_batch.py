"""Made-up samples of a given length, for rehearsing a step: true shapes, random values."""

from __future__ import annotations

import torch
from torch import Tensor

from profiles.models import ENCODER_NAMES
from profiles.plan import Plan
from trainer.batch import Batch
from trainer.data.samples import length_step, padded
from trainer.losses import IGNORE_LABEL
from trainer.model.build import TORCH_DTYPES
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer

ANSWER_TOKENS = 5  # of an answer such as "Sure, [SEG].</s>"


class MadeUp:
    """Micro-batches under a plan, `text_tokens` (least, most) and `masks` a sample.

    Of the text `answer_tokens` are supervised, by default ANSWER_TOKENS for each mask.
    """

    def __init__(
        self,
        plan: Plan,
        tokenizer: LisaTokenizer,
        text_tokens: tuple[int, int],
        masks: int,
        answer_tokens: int | None = None,
    ) -> None:
        self.plan, self.tokenizer = plan, tokenizer
        self.text_tokens, self.masks = text_tokens, masks
        self.answer_tokens = answer_tokens or ANSWER_TOKENS * masks
        self.generator = torch.Generator().manual_seed(plan.seed)

    def step(self) -> list[Batch]:
        """The micro-batches of one step, at most two: more peak no higher."""
        return [self.batch() for _ in range(min(2, self.plan.accumulation))]

    def batch(self) -> Batch:
        """A micro-batch of samples whose lengths are drawn within the limits."""
        least, most = self.text_tokens
        drawn = torch.randint(least, most + 1, (self.plan.micro_batch,), generator=self.generator)
        longest = self.plan.profile.clip.image_tokens + int(drawn.max())
        longest = padded(longest, length_step(self.plan))
        ids = torch.full((self.plan.micro_batch, longest), self.tokenizer.pad_id)
        labels = torch.full_like(ids, IGNORE_LABEL)
        for row, text in enumerate(drawn.tolist()):
            self._sample(ids[row], labels[row], text)
        rest = {"targets": self._targets(), **self._inputs()}
        return Batch.of(ids, labels, self.tokenizer.seg_id, **rest)

    def _sample(self, ids: Tensor, labels: Tensor, text: int) -> None:
        """Fill a row [T]: a system prompt, the picture, a question, an answer for each mask."""
        picture = self.plan.profile.clip.image_tokens
        length = picture + text
        ids[:length] = torch.randint(100, 600, (length,), generator=self.generator)
        ids[8 : 8 + picture] = self.tokenizer.image_id
        for mask in range(self.masks):
            ids[length - ANSWER_TOKENS * mask - 3] = self.tokenizer.seg_id
        answer = slice(max(0, length - self.answer_tokens), length)
        labels[answer] = ids[answer]

    def _targets(self) -> Tensor:
        side = self.plan.mask_loss_resolution
        shape = self.plan.micro_batch * self.masks, side, side
        return torch.randint(0, 2, shape, generator=self.generator, dtype=torch.uint8)

    def _inputs(self) -> dict[str, Tensor]:
        """Features where the plan caches them, pixels elsewhere."""
        clip, sam = self.plan.profile.clip, self.plan.profile.sam
        features = {
            "clip": (clip.image_tokens, clip.hidden),
            "sam": (sam.output_channels, sam.embedding_pixels, sam.embedding_pixels),
        }
        pixels = {"clip": (3, clip.image_pixels, clip.image_pixels),
                  "sam": (3, sam.image_pixels, sam.image_pixels)}  # fmt: skip
        found = {}
        for role, name in ENCODER_NAMES.items():
            cached = role in self.plan.cached_encoders
            shape = self.plan.micro_batch, *(features if cached else pixels)[name]
            dtype = TORCH_DTYPES[self.plan.dtype] if cached else torch.float32
            found[name] = torch.randn(*shape, generator=self.generator, dtype=dtype)
        return found
