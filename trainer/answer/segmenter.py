"""Inference: a question about a picture becomes an answer and masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from profiles.plan import Plan
from profiles.settings import Encoder
from trainer.answer.question import Answer, Question
from trainer.answer.trained_model import Trained
from trainer.batch import Batch, shared_tokens
from trainer.data.images import read_image
from trainer.data.samples import image_tokens
from trainer.ignored import IGNORE_LABEL
from trainer.model.build import read_tokenizer
from trainer.model.families import family_of
from trainer.model.layers.decoder import KeyValues
from trainer.model.tokenizer import ConversationTokenizer
from trainer.parallel.accelerator import make_accelerator
from trainer.reporter import Reporter
from trainer.run.feature_caches import prepare_caches

SILENT = Reporter(lambda text: None, lambda what, done, total: None)


def longest_question(questions: Sequence[Question], tokenizer: ConversationTokenizer) -> int:
    """Text tokens of the longest question, its prompt among them."""
    lengths = (tokenizer.encode([question.turn()]).text_tokens for question in questions)
    return max(lengths, default=0)


def largest_picture(questions: Sequence[Question], plan: Plan) -> int:
    """Tokens of the picture that takes the most. Raises DataError."""
    return max((image_tokens(question.image, plan) for question in questions), default=0)


class _Asked(NamedTuple):
    """A question, and the keys and values of its tokens."""

    image: Path
    ids: list[int]
    kept: KeyValues


class _Seen(NamedTuple):
    """A picture's features of the encoders that stay loaded."""

    image: Path
    features: dict[Encoder, dict[str, Tensor]]


class Segmenter:
    """A trained model ready for questions about `images`.

    The encoders that the plan caches run on all pictures first, one encoder after the other, and
    leave the card before the rest is loaded: together they may not fit where each one does. Their
    features are kept in the cache that training uses. The others stay, and any picture can be
    asked about. Questions about one picture in a row share its features and its prefix.
    """

    def __init__(
        self,
        trained: Trained,
        images: Sequence[Path],
        cache_root: Path,
        reporter: Reporter = SILENT,
        plan: Plan | None = None,
    ) -> None:
        """`plan`: the trained one's with other levers. Raises WeightsError, CheckpointError."""
        self.plan = plan or trained.plan
        self.accelerator = make_accelerator(self.plan, None)
        self.device = self.accelerator.device
        self.tokenizer = read_tokenizer(self.plan)
        pictures = list(dict.fromkeys(images))
        self.caches = prepare_caches(self.plan, pictures, cache_root, self.accelerator, reporter)
        self.model = trained.load(self.plan, self.tokenizer, self.device)
        self.last: _Asked | None = None
        self.seen = _Seen(Path(), {})

    def ask(self, question: Question, most_masks: int | None = None) -> Answer:
        """Answer one question about one of the pictures, with so many masks at most.

        Raises PromptError, DataError.
        """
        started = time.monotonic()
        height, width = read_image(question.image).shape[:2]
        batch = self._batch(question)
        limit, end = self.plan.tokens.max_new_tokens, self.tokenizer.end_id
        past = self._past(question.image, batch.input_ids[0].tolist(), limit)
        before, self.model.cached = self.model.cached, frozenset(batch.inputs)
        new, low = self.model.answer(batch.to(self.device), limit, end, past)
        self.model.cached = before  # evaluation shows it pixels
        left_out = max(0, len(low) - most_masks) if most_masks else 0
        low = low[: len(low) - left_out]
        masks = np.zeros((len(low), height, width), bool)
        frame = self.model.frame
        for number, logits in enumerate(low):
            masks[number] = frame.to_original(logits.cpu()[None], height, width)[0].numpy() > 0
        kept = [token for token in new.tolist() if token != end]
        text = self.tokenizer.decode(kept).strip()
        return Answer(text, masks, time.monotonic() - started, left_out)

    def text_tokens(self, questions: Sequence[Question]) -> int:
        """Text tokens of the longest of some questions. Raises PromptError."""
        return longest_question(questions, self.tokenizer)

    def _past(self, image: Path, ids: list[int], limit: int) -> KeyValues:
        """Keys and values of what this question shares with the last one about the picture."""
        known = 0
        if self.last is not None and self.last.image == image:
            known = shared_tokens(self.last.ids, ids[:-1])
        most = len(ids) + limit + 1
        if (
            self.last is None
            or self.tokenizer.image_id in ids[known:]
            or self.last.kept.most < most
        ):
            self.last = None  # its memory first
            self.last = _Asked(image, ids, KeyValues(most))
        else:
            self.last.kept.forget(known)
            self.last = _Asked(image, ids, self.last.kept)
        return self.last.kept

    def _batch(self, question: Question) -> Batch:
        count = image_tokens(question.image, self.plan)
        ids = torch.tensor([self.tokenizer.encode([question.turn()], count).input_ids])
        return Batch.of(
            ids,
            torch.full_like(ids, IGNORE_LABEL),
            self.tokenizer.seg_id,
            targets=torch.zeros(0),
            inputs=self._features(question.image),
        )

    def _features(self, image: Path) -> dict[Encoder, dict[str, Tensor]]:
        """Every encoder's features of a picture; those of encoders that stay are made once."""
        loaded = [one for one in self.plan.profile.encoders if one not in self.caches]
        if loaded and self.seen.image != image:
            self.seen = _Seen(Path(), {})  # its memory first
            self.seen = _Seen(image, {encoder: self._made(encoder, image) for encoder in loaded})
        found = {name: cache.read(image) for name, cache in self.caches.items()}
        return found | self.seen.features

    @torch.no_grad()
    def _made(self, encoder: Encoder, image: Path) -> dict[str, Tensor]:
        profile = self.plan.profile
        pixels = family_of(profile).pixels(read_image(image), encoder, profile)
        dtype = self.model.dtype
        return self.model.encode(encoder, {
            name: one.to(self.device, dtype if one.is_floating_point() else None)
            for name, one in pixels.items()
        })  # fmt: skip
