"""What data sets provide: pictures, the questions about each, and how to paint its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from profiles.text import is_text
from trainer.data.findings import Finding, Report
from trainer.prompts import (
    RESERVED_TOKENS,
    Turn,
    answer_for,
    question_for,
)

Paint: TypeAlias = Callable[[int, int], NDArray[np.uint8]]
"""paint(height, width) -> uint8 [height, width]: 0 background, 1 target, 255 ignore."""


Conversation: TypeAlias = "list[AskedTurn]"


@dataclass(frozen=True)
class AskedTurn:
    """A question and its answer, with the mask of the answer's one [SEG] if it has one."""

    turn: Turn
    paint: Paint | None = None


class Picture(Protocol):
    """A picture of a data set with its possible questions."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def image_path(self) -> Path:
        """Its file."""

    @property
    def where(self) -> str:
        """The annotation file, and the place in it, for messages."""

    @property
    def questions(self) -> int:
        """How many can be asked about it, each in a conversation of its own."""

    def draw(self, rng: np.random.Generator, most: int) -> list[Conversation]:
        """Draw that many different conversations at most; `rng` decides everything."""

    def draw_one(self, rng: np.random.Generator, most_masks: int) -> Conversation:
        """Draw one training conversation, in one turn or several; `rng` decides everything."""

    def all_masks(self) -> Iterator[Paint]:
        """All of its masks."""


@dataclass(frozen=True)
class DataSet:
    """The pictures of one folder or file, for training."""

    name: str
    pictures: Sequence[Picture]
    left_out: int = 0  # entries without a picture
    annotations: Sequence[Path] = ()  # the files that its questions and masks are read from


Scanned: TypeAlias = tuple[list[DataSet], list[Finding]]


@dataclass(frozen=True)
class Target:
    """Something to segment: phrases that mean it, and its mask."""

    phrases: tuple[str, ...]
    paint: Paint


@dataclass(frozen=True)
class SegmentedPicture:
    """A picture with one target or more, asked for in short phrases."""

    name: str
    image_path: Path
    where: str
    targets: tuple[Target, ...]

    @property
    def questions(self) -> int:
        """One about each target."""
        return len(self.targets)

    def draw(self, rng: np.random.Generator, most: int) -> list[Conversation]:
        """Up to `most` of the targets in random order, each in its own conversation."""
        return [[turn] for turn in self.draw_one(rng, most)]

    def draw_one(self, rng: np.random.Generator, most_masks: int) -> Conversation:
        """Up to `most_masks` of the targets in random order, each in its own turn."""
        choose = random_choice(rng)
        drawn = (self.targets[n] for n in rng.permutation(len(self.targets))[:most_masks])
        return [
            AskedTurn(
                Turn(question_for(choose(t.phrases), False, choose), answer_for(choose)), t.paint
            )
            for t in drawn
        ]

    def all_masks(self) -> Iterator[Paint]:
        """The masks of all targets."""
        return (target.paint for target in self.targets)


def random_choice(rng: np.random.Generator) -> Callable[[Sequence[str]], str]:
    """A function that draws one of several texts uniformly."""
    return lambda options: options[int(rng.integers(len(options)))]


def as_phrase(report: Report, what: str, text: object) -> str | None:
    """A phrase as used in a question, in lower case; None if it is blank.

    Also None, with a finding added, if it is not text, has half a character, or contains one of
    the model's tokens.
    """
    whole = isinstance(text, str) and is_text(text)
    if not isinstance(text, str) or not whole or any(one in text.lower() for one in _RESERVED):
        allowed = f"text without {', '.join(RESERVED_TOKENS)}, in whole characters"
        report.add(what, text, allowed, "correct the annotation or take it out")
        return None
    phrase = " ".join(text.lower().split())
    # The templates continue after a phrase and remove one full stop or question mark.
    return phrase if phrase.rstrip(".? ") else None


_RESERVED = tuple(token.lower() for token in RESERVED_TOKENS)
