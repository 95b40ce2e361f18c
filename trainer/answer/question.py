"""Questions about pictures, and the model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.prompts import Turn, explanatory_question_for, question_for


@dataclass(frozen=True)
class Question:
    """A question about a picture: a sentence, or a noun phrase."""

    image: Path
    text: str
    is_sentence: bool = True
    explain: bool = False

    def turn(self) -> Turn:
        """The question in the template that the model was trained with. Raises PromptError."""
        if self.explain:
            return Turn(explanatory_question_for(self.text, first), None)
        return Turn(question_for(self.text, self.is_sentence, first), None)


def first(options: Sequence[str]) -> str:
    """The first template: inference does not draw one."""
    return options[0]


class Stopped(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and a mask [H, W] bool for each [SEG] in it."""

    text: str
    masks: NDArray[np.bool_]  # [n, H, W]
    seconds: float
    left_out: int = 0  # number of masks beyond the limit; the last ones are left out

    @property
    def mask(self) -> NDArray[np.bool_]:
        """All masks together, [H, W]; empty where there is none."""
        return np.asarray(self.masks.any(0))
