"""The largest sample that a training step can meet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Worst:
    """The sample that decides: `text_tokens` beside the picture's (None: the longest of `data`).

    Masks and supervised tokens are the most of `data` too, or what the plan's samples may hold.
    """

    text_tokens: int | None = None
    masks: int | None = None
    data: Path | None = None
    answer_tokens: int | None = None
    image_tokens: int | None = None  # of the largest picture; None: what the plan allows
    answering: bool = False  # a question, greedily answered, instead of a training step
