"""What a data set hands over: pictures, what each is asked, and how its masks are painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.data.findings import Finding, Report
from trainer.prompts import (
    RESERVED_TOKENS,
    Turn,
    answer_for,
    question_for,
)

Paint: TypeAlias = Callable[[int, int], NDArray[np.uint8]]
"""(height, width) of the picture -> uint8 [height, width]: 0 background, 1 target, 255 ignore."""


@dataclass(frozen=True)
class AskedTurn:
    """A question and its answer, with the mask of the answer's one [SEG] if it has one."""

    turn: Turn
    paint: Paint | None = None


class Picture(Protocol):
    """A picture of a data set and what it can be asked."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def image_path(self) -> Path:
        """Where it lies."""

    @property
    def where(self) -> str:
        """The file, and the place in it, to look at if something is wrong."""

    def draw_turns(self, rng: np.random.Generator, most_masks: int) -> list[AskedTurn]:
        """One training conversation, one question or more; all that is drawn comes from `rng`."""

    def all_masks(self) -> Iterator[Paint]:
        """Every mask that it has."""


@dataclass(frozen=True)
class DataSet:
    """The pictures of one folder or file, for training."""

    name: str
    pictures: Sequence[Picture]
    left_out: int = 0  # entries that are about no picture


Scanned: TypeAlias = tuple[list[DataSet], list[Finding]]


@dataclass(frozen=True)
class Target:
    """Something to segment: phrases that all mean it, and its mask."""

    phrases: tuple[str, ...]
    paint: Paint


@dataclass(frozen=True)
class SegmentedPicture:
    """A picture with targets, one at least, that are asked for in short phrases."""

    name: str
    image_path: Path
    where: str
    targets: tuple[Target, ...]

    def draw_turns(self, rng: np.random.Generator, most_masks: int) -> list[AskedTurn]:
        """Up to `most_masks` of the targets in any order, each in a turn of its own."""
        choose = random_choice(rng)
        drawn = (self.targets[n] for n in rng.permutation(len(self.targets))[:most_masks])
        return [
            AskedTurn(
                Turn(question_for(choose(t.phrases), False, choose), answer_for(choose)), t.paint
            )
            for t in drawn
        ]

    def all_masks(self) -> Iterator[Paint]:
        """Every target's."""
        return (target.paint for target in self.targets)


def random_choice(rng: np.random.Generator) -> Callable[[Sequence[str]], str]:
    """Picks one of several texts, each as likely."""
    return lambda options: options[int(rng.integers(len(options)))]


def as_phrase(report: Report, what: str, text: object) -> str | None:
    """A phrase as it stands in a question, in small letters; None if it is blank.

    None, too, with a finding added, if it is no text or holds a token of the model's own.
    """
    if not isinstance(text, str) or any(token in text.lower() for token in _RESERVED):
        allowed = f"text without {', '.join(RESERVED_TOKENS)}"
        report.add(what, text, allowed, "correct the annotation or take it out")
        return None
    phrase = " ".join(text.lower().split())
    # The templates carry on after a phrase and take one full stop or question mark off.
    return phrase if phrase.rstrip(".? ") else None


_RESERVED = tuple(token.lower() for token in RESERVED_TOKENS)
