"""Pictures and their questions as training samples, and samples as right-padded batches.

A sample's wording depends only on (seed, epoch, index), never on which worker or process makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from profiles.plan import Plan
from profiles.settings import Encoder
from profiles.text import one_line
from trainer.batch import Batch, Encoded
from trainer.data.feature_cache import FeatureCache
from trainer.data.formats.reasonseg import Item, ReasoningPicture
from trainer.data.images import read_image, size_of
from trainer.data.mixture import MixedSets, generator_of
from trainer.data.pictures import AskedTurn, Picture
from trainer.data.polygons import IGNORE
from trainer.frame import Frame
from trainer.losses import IGNORE_LABEL, check_target
from trainer.model.families import family_of
from trainer.model.tokenizer import ConversationTokenizer, TooLong
from trainer.prompts import Turn

COMPILED_LENGTH_STEP = 32  # tokens


@dataclass(frozen=True)
class Sample:
    """One conversation about one picture, with a mask for each of its [SEG]."""

    name: str
    encoded: Encoded
    targets: NDArray[np.uint8]  # [masks, R, R] of {0, 1, 255} in SAM's frame
    inputs: dict[Encoder, dict[str, Tensor]]  # features or pixels
    truth: NDArray[np.uint8]  # [H, W] of {0, 1, 255}: the first mask at the picture's own size


class SampleSet(Dataset[Sample]):
    """Samples of one split or of a mixture.

    Index with (epoch, index) in training, with index in evaluation, which is of ReasonSeg.
    """

    def __init__(
        self,
        items: Sequence[Item] | MixedSets,
        plan: Plan,
        tokenizer: ConversationTokenizer,
        caches: dict[Encoder, FeatureCache],
        training: bool,
    ) -> None:
        self.items = items if isinstance(items, MixedSets) else list(items)
        self.plan = plan
        self.tokenizer = tokenizer
        self.caches = caches
        self.training = training
        self.frame = Frame.of(plan.profile)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int | tuple[int, int]) -> Sample:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        picture, asked, encoded = self._visit(epoch, index)
        self._check_length(picture, encoded)
        image = read_image(picture.image_path)
        size, side = image.shape[:2], self.plan.mask_loss_resolution
        truths = [one.paint(*size) for one in asked if one.paint is not None]
        framed = [self.frame.mask(truth, side) for truth in truths]
        return Sample(
            name=picture.name,
            encoded=encoded,
            targets=np.stack(framed) if framed else np.zeros((0, side, side), np.uint8),
            inputs={
                encoder: self._input(encoder, picture, image)
                for encoder in self.plan.profile.encoders
            },
            truth=truths[0] if truths else np.full(size, IGNORE, np.uint8),
        )

    def length(self, epoch: int, index: int) -> int:
        """Tokens of one visit to a sample, its picture's among them."""
        return len(self.encoded(epoch, index).input_ids)

    def encoded(self, epoch: int, index: int) -> Encoded:
        """The conversation of one visit."""
        return self._visit(epoch, index)[2]

    def check_lengths(self) -> None:
        """Look at the first turn of every visit of the training, which has to fit.

        Raises TooLong: better now than hours into a run that draws from many dialogues.
        """
        for epoch, index in product(range(self.plan.schedule.epochs), range(len(self))):
            picture, asked = self._asked(epoch, index)
            first = [asked[0].turn]
            # A token is a byte or more, so most visits need not be tokenised for it.
            if len(self.tokenizer.text(first).encode()) > self.plan.tokens.max_text_tokens:
                self._check_length(picture, self._encode(picture, first))

    def _visit(self, epoch: int, index: int) -> tuple[Picture, list[AskedTurn], Encoded]:
        """A picture, what it is asked, and the conversation.

        Last turns go until the rest is as short as the plan allows, or only one is left.
        """
        picture, asked = self._asked(epoch, index)
        encoded = self._encode(picture, [one.turn for one in asked])
        while len(asked) > 1 and encoded.text_tokens > self.plan.tokens.max_text_tokens:
            asked = asked[:-1]
            encoded = self._encode(picture, [one.turn for one in asked])
        return picture, asked, encoded

    def _encode(self, picture: Picture, turns: list[Turn]) -> Encoded:
        return self.tokenizer.encode(turns, image_tokens(picture.image_path, self.plan))

    def _asked(self, epoch: int, index: int) -> tuple[Picture, list[AskedTurn]]:
        """A picture and all that it is asked."""
        rng = generator_of(self.plan, epoch, index)
        if isinstance(self.items, MixedSets):
            picture = self.items.draw(rng)
            return picture, picture.draw_turns(rng, self.plan.most_masks)
        item = ReasoningPicture(self.items[index])
        return item, item.draw_turns(rng) if self.training else item.evaluation()

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

    Compiled layers are compiled for every length that comes, so they get few.
    """
    return COMPILED_LENGTH_STEP if plan.compile else 1


def padded(length: int, step: int) -> int:
    """The multiple of `step` at or above `length`."""
    return -(-length // step) * step


def collate(samples: Sequence[Sample], tokenizer: ConversationTokenizer, step: int = 1) -> Batch:
    """Samples as one batch, right-padded to a multiple of `step` tokens.

    Raises ValueError for a mask of other values.
    """
    longest = padded(max(len(sample.encoded.input_ids) for sample in samples), step)
    ids = torch.full((len(samples), longest), tokenizer.pad_id)
    labels = torch.full((len(samples), longest), IGNORE_LABEL)
    for row, sample in enumerate(samples):
        length = len(sample.encoded.input_ids)
        ids[row, :length] = torch.tensor(sample.encoded.input_ids)
        labels[row, :length] = torch.tensor(sample.encoded.labels)
    targets = torch.from_numpy(np.concatenate([sample.targets for sample in samples]))
    check_target(targets)
    return Batch.of(
        ids,
        labels,
        tokenizer.seg_id,
        targets=targets,
        inputs={encoder: _joined(samples, encoder) for encoder in samples[0].inputs},
        names=tuple(sample.name for sample in samples),
    )


def _joined(samples: Sequence[Sample], encoder: Encoder) -> dict[str, Tensor]:
    """One encoder's tensors of all samples, along the pictures' axis."""
    given = [sample.inputs[encoder] for sample in samples]
    return {name: torch.cat([one[name] for one in given]) for name in given[0]}


class MicroBatches:
    """Batch sampler: the micro-batches of one process, effective batch after effective batch.

    Each epoch is one seeded permutation; its last effective batch is filled up from the
    permutation's start, so that every update sees the same number of samples. The samples of an
    effective batch depend neither on the micro-batch nor on the number of processes; within it,
    those of similar `length(epoch, index)` come together, so that little is padded.
    """

    def __init__(
        self, size: int, plan: Plan, length: Callable[[int, int], int], rank: int = 0
    ) -> None:
        self.size = size
        self.plan = plan
        self.length = length
        self.rank = rank
        self.epoch = 0
        self.skip = 0  # optimizer steps of the epoch that are done already

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.size // self.plan.effective_batch)

    def __len__(self) -> int:
        return (self.steps - self.skip) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self.plan
        order = np.random.default_rng([plan.seed, self.epoch]).permutation(self.size)
        order = np.resize(order, self.steps * plan.effective_batch)
        shape = plan.accumulation, plan.processes, plan.micro_batch
        for effective in order.reshape(self.steps, plan.effective_batch)[self.skip :]:
            lengths = [self.length(self.epoch, int(index)) for index in effective]
            step = effective[np.argsort(lengths, kind="stable")].reshape(shape)
            for micro in step[:, self.rank]:
                yield [(self.epoch, int(index)) for index in micro]


def image_paths(*splits: Iterable[Item | Picture]) -> list[Path]:
    """Every picture once, in order of first appearance."""
    return list(dict.fromkeys(item.image_path for items in splits for item in items))
