"""Inference: a question about a picture becomes an answer and masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from profiles.plan import Plan
from profiles.settings import Encoder, TokenLimits
from trainer.answer.question import Answer, Question, Stopped
from trainer.answer.trained_model import Trained
from trainer.batch import Batch, Encoded, shared_tokens, sharing_prefix
from trainer.data.images import read_image, size_of
from trainer.data.samples import batch_of, image_tokens
from trainer.model.answering import Answering, Said, not_stopped
from trainer.model.build import read_tokenizer
from trainer.model.families import family_of
from trainer.model.layers.replayed import own_stream
from trainer.model.tokenizer import ConversationTokenizer
from trainer.parallel.accelerator import make_accelerator
from trainer.reporter import Reporter
from trainer.run.feature_caches import prepare_caches

# Tokens of room for each answer where several questions share a row: LISA's templates take 4 to 11
# LLaMA tokens. One long answer's room is added for all to share: an explanation may use all of it.
USUAL, EXPLAINED = 8, 64
SILENT = Reporter(lambda text: None, lambda what, done, total: None)


def longest_question(questions: Sequence[Question], tokenizer: ConversationTokenizer) -> int:
    """Text tokens of the longest question, its prompt among them."""
    lengths = (tokenizer.encode([question.turn()]).text_tokens for question in questions)
    return max(lengths, default=0)


def longest_row(
    questions: Sequence[Question], tokenizer: ConversationTokenizer, limits: TokenLimits
) -> int:
    """Text tokens of the longest row in which `Segmenter.ask_all` answers some of these questions.

    Includes the room for their answers beyond that of a single answer. Raises PromptError.
    """
    rows: dict[Path, tuple[list[Question], list[Encoded]]] = {}
    for question in questions:
        asked, encoded = rows.setdefault(question.image, ([], []))
        asked.append(question)
        encoded.append(tokenizer.encode([question.turn()]))
    groups = (group for of_one in rows.values() for group in _groups(*of_one, limits))
    return max((_text_of(group, limits) for group in groups), default=0)


class Group(NamedTuple):
    """Rows of questions that are answered together, and the tokens that all answers may have."""

    rows: Sequence[Encoded]
    room: int


def _text_of(group: Group, limits: TokenLimits) -> int:
    return sharing_prefix(group.rows).text_tokens + group.room - (limits.max_new_tokens + 1)


def largest_picture(questions: Sequence[Question], plan: Plan) -> int:
    """Tokens of the picture that takes the most. Raises DataError."""
    return max((image_tokens(question.image, plan) for question in questions), default=0)


class Segmenter:
    """A trained model ready for questions about `images`.

    The encoders that the plan caches first run on all pictures, one encoder after the other, and
    leave the card before the model is loaded: each may fit where all together do not. Their
    features stay in the cache that training uses. Encoders that are not cached stay loaded, so that
    any picture can be asked about. Consecutive questions about a picture share its features and its
    prefix, and `ask_all` answers them together.

    On a card everything runs on a stream of its own, which becomes the asking thread's stream. Only
    one thread may ask at a time.
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
        self.use_stream = own_stream(self.device)
        self.use_stream()
        self.tokenizer = read_tokenizer(self.plan)
        pictures = list(dict.fromkeys(images))
        self.caches = prepare_caches(self.plan, pictures, cache_root, self.accelerator, reporter)
        self.model = trained.load(self.plan, self.tokenizer, self.device)
        self.answering: Answering | None = None
        self.stopped: Callable[[], bool] = not_stopped  # asked at each token
        # Of the last picture: its file, its features, and the tokens of a question about it.
        self.seen: tuple[Path, int, int] | None = None
        self.features: dict[Encoder, dict[str, Tensor]] = {}
        self.read: list[int] = []

    def ask(self, question: Question, most_masks: int | None = None) -> Answer:
        """Answer one question about one of the pictures, with at most `most_masks` masks.

        Raises PromptError, DataError.
        """
        return next(self.ask_all([question], most_masks))

    def ask_all(
        self, questions: Sequence[Question], most_masks: int | None = None
    ) -> Iterator[Answer]:
        """Answers in order; several questions in a row about one picture are answered together.

        Together they take no more tokens than one question may have (`tokens.max_text_tokens`). An
        answer's seconds are its share of the common time, and its own. Raises PromptError,
        DataError, and Stopped if `stopped` returns true.
        """
        for image, those in groupby(questions, attrgetter("image")):
            asked = [*those]
            height, width = size_of(image)
            for group in _groups(asked, self._rows(asked), self.plan.tokens):
                started = time.monotonic()
                found = self._said(image, group)
                share = (time.monotonic() - started) / len(found)
                # One after the other: masks of a large picture take memory.
                for one, row in zip(found, group.rows, strict=True):
                    started = time.monotonic()
                    whole = self._whole(image, one, row)
                    seconds = share + time.monotonic() - started
                    yield self._shown(whole, most_masks, height, width, seconds)

    def _whole(self, image: Path, said: Said, row: Encoded) -> Said:
        """An answer to its end: a row has room for one long answer, not for several at once."""
        return said if said.ended else self._said(image, _group([row], 0, self.plan.tokens))[0]

    def _shown(
        self, said: Said, most_masks: int | None, height: int, width: int, seconds: float
    ) -> Answer:
        """An answer's text, and its masks at the picture's size; it took `seconds` to say."""
        started = time.monotonic()
        low = said.masks[:most_masks]
        masks = np.zeros((len(low), height, width), bool)
        frame = self.model.frame
        for number, logits in enumerate(low):
            masks[number] = frame.to_original(logits.cpu()[None], height, width)[0].numpy() > 0
        kept = [token for token in said.tokens if token != self.tokenizer.end_id]
        text = self.tokenizer.decode(kept).strip()
        seconds += time.monotonic() - started
        return Answer(text, masks, seconds, len(said.masks) - len(low))

    def text_tokens(self, questions: Sequence[Question]) -> int:
        """Text tokens of the longest of some questions. Raises PromptError."""
        return longest_question(questions, self.tokenizer)

    def _rows(self, questions: Sequence[Question]) -> list[Encoded]:
        """Each question about a picture as a row of its own. Raises PromptError, DataError."""
        count = image_tokens(questions[0].image, self.plan)
        return [self.tokenizer.encode([question.turn()], count) for question in questions]

    def _batch(self, image: Path, row: Encoded) -> Batch:
        inputs = self._features(image)
        return batch_of([row], self.tokenizer, targets=torch.zeros(0), inputs=inputs)

    def _said(self, image: Path, group: Group) -> list[Said]:
        """What the model says to questions about a picture in one row, as far as there is room."""
        self.use_stream()
        row, most = sharing_prefix(group.rows), self.plan.tokens.max_new_tokens
        batch = self._batch(image, row)
        first = row.input_ids[: row.starts[1]] if row.starts else row.input_ids
        answering = self._for(first, len(row.input_ids) + group.room)
        before, self.model.cached = self.model.cached, frozenset(batch.inputs)
        try:
            end = self.tokenizer.end_id
            found = answering.answers(batch.to(self.device), most, end, self.stopped)
        finally:
            self.model.cached = before  # evaluation shows it pixels
        self.read = first
        if self.stopped():
            raise Stopped
        return found

    def _for(self, first: list[int], most: int) -> Answering:
        """Room for a row, which knows what its first question shares with the last one."""
        known = shared_tokens(self.read, first[:-1])
        self.read = []  # until the row was read: what breaks off leaves half of it
        if self.tokenizer.image_id in first[known:]:
            known = 0
        if self.answering is None or self.answering.past.most < most:
            known, self.answering = 0, None  # its memory first
            self.answering = Answering(self.model, most)
        self.answering.past.forget(known)
        return self.answering

    def _features(self, image: Path) -> dict[Encoder, dict[str, Tensor]]:
        """Every encoder's features of a picture, made or read once while it is asked about."""
        file = image.stat()
        seen = image, file.st_mtime_ns, file.st_size
        if self.seen != seen:
            self.seen, self.features, self.read = None, {}, []  # their memory first
            self.features = {
                encoder: self.caches[encoder].read(image)
                if encoder in self.caches
                else self._made(encoder, image)
                for encoder in self.plan.profile.encoders
            }
            self.seen = seen
        return self.features

    @torch.no_grad()
    def _made(self, encoder: Encoder, image: Path) -> dict[str, Tensor]:
        if self.stopped():
            raise Stopped
        profile = self.plan.profile
        pixels = family_of(profile).pixels(read_image(image), encoder, profile)
        dtype = self.model.dtype
        return self.model.encode(encoder, {
            name: one.to(self.device, dtype if one.is_floating_point() else None)
            for name, one in pixels.items()
        })  # fmt: skip


def _groups(
    questions: Sequence[Question], rows: Sequence[Encoded], limits: TokenLimits
) -> Iterator[Group]:
    """Groups of questions to answer together, in order.

    With their usual answers a group takes no more tokens than one question may have.
    """
    group: list[Encoded] = []
    said = 0  # tokens of the group's usual answers
    for question, row in zip(questions, rows, strict=True):
        usual = min(EXPLAINED, limits.max_new_tokens) if question.explain else USUAL
        together = sharing_prefix([*group, row]).text_tokens + said + usual
        if group and together > limits.max_text_tokens:
            yield _group(group, said, limits)
            group, said = [], 0
        group.append(row)
        said += usual
    if group:
        yield _group(group, said, limits)


def _group(rows: Sequence[Encoded], said: int, limits: TokenLimits) -> Group:
    one = limits.max_new_tokens + 1
    return Group(rows, min(one * len(rows), said + one))
