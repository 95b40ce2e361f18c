"""Pictures and their questions as training samples, and samples as right-padded batches.

A sample's wording depends only on (seed, epoch, index), never on which worker or process makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from profiles.plan import Plan
from profiles.settings import Encoder
from profiles.text import one_line
from trainer.batch import Batch, Encoded, sharing_prefix
from trainer.data.feature_cache import FeatureCache
from trainer.data.formats.reasonseg import Item, ReasoningPicture, by_picture
from trainer.data.images import read_image, size_of
from trainer.data.mixture import MixedSets, generator_of
from trainer.data.pictures import Conversation, Picture
from trainer.frame import Frame
from trainer.ignored import IGNORE_LABEL
from trainer.losses import check_target
from trainer.model.families import family_of
from trainer.model.tokenizer import ConversationTokenizer, TooLong
from trainer.prompts import Turn

COMPILED_LENGTH_STEP = 32  # tokens
# CUDA's attention copies a mask whose rows have another multiple, in every layer.
MASK_STEP = 8  # tokens


class Visit(NamedTuple):
    """One row of the training: the lap (pass over the pictures), the picture's number, and how many
    questions it gives. Lap and number decide what is drawn."""

    lap: int
    picture: int
    questions: int


@dataclass(frozen=True)
class Sample:
    """One row about one picture, with a mask for each of its [SEG]."""

    name: str
    encoded: Encoded
    targets: NDArray[np.uint8]  # [masks, R, R] of {0, 1, 255} in SAM's frame
    inputs: dict[Encoder, dict[str, Tensor]]  # features or pixels
    # In evaluation: each question's item, and its mask [H, W] at the picture's own size.
    truths: dict[str, NDArray[np.uint8]]


class SampleSet(Dataset[Sample]):
    """Rows of one split or of a mixture.

    Index with a Visit, or (lap, index), in training; with an index in evaluation, which is of
    ReasonSeg.
    """

    def __init__(
        self,
        items: Sequence[Item] | MixedSets,
        plan: Plan,
        tokenizer: ConversationTokenizer,
        caches: dict[Encoder, FeatureCache],
        training: bool,
    ) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.caches = caches
        self.training = training
        self.frame = Frame.of(plan.profile)
        self.seen_pictures: dict[Path, int] = {}  # their tokens: a mixture draws them again
        self.epoch_questions = len(items)  # an epoch asks as many, however rows share pictures
        self.drawn = isinstance(items, MixedSets)  # anew in every epoch
        self.items: MixedSets | list[ReasoningPicture]
        if isinstance(items, MixedSets):
            self.items = items
        elif plan.questions_per_picture == 1:
            self.items = [ReasoningPicture(item) for item in items]
        else:
            pictures = by_picture(items)
            self.items = pictures if training else list(self._in_rows(pictures))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int | tuple[int, int] | Visit) -> Sample:
        picture, asked, encoded = self._visit(place)
        self._check_length(picture, encoded)
        image = read_image(picture.image_path)
        side = self.plan.mask_loss_resolution
        paints = [one.paint for conversation in asked for one in conversation if one.paint]
        painted = {paint: paint(*image.shape[:2]) for paint in paints}  # items ask more than once
        framed = {paint: self.frame.mask(truth, side) for paint, truth in painted.items()}
        targets = [framed[paint] for paint in paints]
        named = () if self.training else zip(self._names(place), paints, strict=True)
        return Sample(
            name=picture.name,
            encoded=encoded,
            targets=np.stack(targets) if targets else np.zeros((0, side, side), np.uint8),
            inputs={
                encoder: self._input(encoder, picture, image)
                for encoder in self.plan.profile.encoders
            },
            truths={name: painted[paint] for name, paint in named},
        )

    def questions(self, lap: int, index: int) -> int:
        """How many questions a visit can give, at most the plan's."""
        if self.plan.questions_per_picture == 1:
            return 1
        return min(self.plan.questions_per_picture, self.picture(lap, index).questions)

    def picture(self, lap: int, index: int) -> Picture:
        """The picture of a visit."""
        if isinstance(self.items, MixedSets):
            return self.items.draw(generator_of(self.plan, lap, index))
        return self.items[index]

    def length(self, visit: Visit) -> int:
        """Tokens of one visit to a picture, the picture's among them."""
        return len(self.encoded(visit).input_ids)

    def encoded(self, place: int | tuple[int, int] | Visit) -> Encoded:
        """The tokens of one row."""
        return self._visit(place)[2]

    def check_lengths(self, visits: Iterable[Visit]) -> int:
        """Check that the first turn of every visit of the training fits.

        Returns how many further questions do not fit and will be left out. Raises TooLong now, not
        hours into a run that draws from many dialogues.
        """
        left_out = 0
        for visit in visits:
            picture, asked = self._asked(visit)
            first = [asked[0][0].turn]
            limit = self.plan.tokens.max_text_tokens
            # A token is a byte or more, so most visits need not be tokenised for it.
            if len(self.tokenizer.text(first).encode()) > limit:
                self._check_length(picture, self._encode(picture, first))
            turns = [one.turn for conversation in asked for one in conversation]
            if len(asked) > 1 and len(self.tokenizer.text(turns).encode()) > limit:
                left_out += len(asked) - self.encoded(visit).questions
        return left_out

    def _visit(
        self, place: int | tuple[int, int] | Visit
    ) -> tuple[Picture, list[Conversation], Encoded]:
        """A picture, what it is asked, and the row.

        Questions, and then turns, are dropped from the end until the row is as short as the plan
        allows, or only one is left.
        """
        picture, asked = self._asked(place)
        rows = [self._encode(picture, [one.turn for one in turns]) for turns in asked]
        limit = self.plan.tokens.max_text_tokens
        shared = sharing_prefix(rows)
        while len(rows) > 1 and shared.text_tokens > limit:
            rows.pop()
            shared = sharing_prefix(rows)
        asked = asked[: len(rows)]
        while len(rows) == 1 and len(asked[0]) > 1 and rows[0].text_tokens > limit:
            asked = [asked[0][:-1]]
            shared = rows[0] = self._encode(picture, [one.turn for one in asked[0]])
        return picture, asked, shared

    def _encode(self, picture: Picture, turns: list[Turn]) -> Encoded:
        path = picture.image_path
        if path not in self.seen_pictures:
            self.seen_pictures[path] = image_tokens(path, self.plan)
        return self.tokenizer.encode(turns, self.seen_pictures[path])

    def _asked(self, place: int | tuple[int, int] | Visit) -> tuple[Picture, list[Conversation]]:
        """A picture and all that it is asked, each in a conversation of its own."""
        most = self.plan.questions_per_picture
        if isinstance(place, int):
            lap, index = 0, place
        else:
            lap, index, most = (*place, most)[:3]
        rng = generator_of(self.plan, lap, index)
        if isinstance(self.items, MixedSets):
            picture: Picture = self.items.draw(rng)
        else:
            picture = self.items[index]
            if not self.training:
                return picture, self.items[index].evaluation()
        if self.plan.questions_per_picture == 1:
            return picture, [picture.draw_one(rng, self.plan.most_masks)]
        return picture, picture.draw(rng, most)

    def _names(self, place: object) -> list[str]:
        """The items of one row in evaluation."""
        assert isinstance(place, int) and isinstance(self.items, list)
        return [item.name for item in self.items[place].items]

    def _in_rows(self, pictures: Iterable[ReasoningPicture]) -> Iterator[ReasoningPicture]:
        """The items of each picture in rows that are as long as the plan allows."""
        most, limit = self.plan.questions_per_picture, self.plan.tokens.max_text_tokens
        for picture in pictures:
            row: list[Item] = []
            rows: list[Encoded] = []
            for item, (asked,) in zip(picture.items, picture.evaluation(), strict=True):
                encoded = self._encode(picture, [asked.turn])
                if rows and (
                    len(rows) == most or sharing_prefix([*rows, encoded]).text_tokens > limit
                ):
                    yield ReasoningPicture(row[0], tuple(row[1:]))
                    row, rows = [], []
                row, rows = [*row, item], [*rows, encoded]
            yield ReasoningPicture(row[0], tuple(row[1:]))

    def _input(
        self, encoder: Encoder, picture: Picture, image: NDArray[np.uint8]
    ) -> dict[str, Tensor]:
        if encoder in self.caches:
            return self.caches[encoder].read(picture.image_path)
        profile = self.plan.profile
        return family_of(profile).pixels(image, encoder, profile)

    def _check_length(self, picture: Picture, encoded: Encoded) -> None:
        text, limit = encoded.text_tokens, self.plan.tokens.max_text_tokens
        if text > limit:
            raise TooLong(
                f"{one_line(picture.where)}: {text} text tokens, the plan allows {limit}\n"
                f"    hint: shorten the text, or --set tokens.max_text_tokens={text}"
            )


def image_tokens(image: Path, plan: Plan) -> int:
    """Positions that a picture takes in the decoder. Raises DataError."""
    profile = plan.profile
    return (
        profile.image_tokens(*size_of(image)) if profile.tokens_vary else profile.most_image_tokens
    )


def length_step(plan: Plan) -> int:
    """Micro-batches are padded to a multiple of it, in tokens.

    Compiled layers are compiled anew for every length, so they get fewer lengths.
    """
    if plan.compile:
        return COMPILED_LENGTH_STEP
    return 1 if plan.questions_per_picture == 1 else MASK_STEP


def padded_length(length: int, plan: Plan) -> int:
    """The padded length of a micro-batch whose longest row has `length` tokens."""
    return _padded(length, length_step(plan))


def _padded(length: int, step: int) -> int:
    """The multiple of `step` at or above `length`."""
    return -(-length // step) * step


def collate(samples: Sequence[Sample], tokenizer: ConversationTokenizer, step: int = 1) -> Batch:
    """Samples as one batch, right-padded to a multiple of `step` tokens.

    Raises ValueError for a mask of other values.
    """
    rows = [sample.encoded for sample in samples]
    targets = torch.from_numpy(np.concatenate([sample.targets for sample in samples]))
    check_target(targets)
    return batch_of(
        rows,
        tokenizer,
        step,
        targets=targets,
        inputs={encoder: _joined(samples, encoder) for encoder in samples[0].inputs},
        names=tuple(sample.name for sample in samples),
    )


def batch_of(
    rows: Sequence[Encoded], tokenizer: ConversationTokenizer, step: int = 1, **rest: Any
) -> Batch:
    """Rows as one batch, right-padded to a multiple of `step` tokens; `rest` are its other fields.

    Padding counts as part of the prefix, so no question sees it.
    """
    longest = _padded(max(len(row.input_ids) for row in rows), step)
    ids = torch.full((len(rows), longest), tokenizer.pad_id)
    labels = torch.full_like(ids, IGNORE_LABEL)
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        ids[number, :length] = torch.tensor(row.input_ids)
        labels[number, :length] = torch.tensor(row.labels)
    if any(row.starts for row in rows):
        blocks, places = torch.zeros_like(ids), torch.zeros_like(ids)
        for number, row in enumerate(rows):
            length = len(row.input_ids)
            blocks[number, :length] = torch.tensor(row.blocks())
            places[number, :length] = torch.tensor(row.places())
        rest |= {"blocks": blocks, "places": places}
    return Batch.of(ids, labels, tokenizer.seg_id, **rest)


def _joined(samples: Sequence[Sample], encoder: Encoder) -> dict[str, Tensor]:
    """One encoder's tensors of all samples, along the pictures' axis."""
    given = [sample.inputs[encoder] for sample in samples]
    return {name: torch.cat([one[name] for one in given]) for name in given[0]}


def image_paths(*splits: Iterable[Item | Picture]) -> list[Path]:
    """Every picture once, in order of first appearance."""
    return list(dict.fromkeys(item.image_path for items in splits for item in items))
