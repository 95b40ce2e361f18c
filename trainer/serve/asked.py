"""What is asked over HTTP, how it is answered, and why it is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.answer.question import Question

KINDS = ("sentence", "phrase", "explain")  # of questions, in a form


@dataclass(frozen=True)
class Asked:
    """Questions about one picture, given as a file's bytes."""

    picture: bytes = field(repr=False)
    texts: tuple[str, ...]
    phrase: bool = False
    explain: bool = False

    def questions(self, image: Path) -> list[Question]:
        """The questions about the picture, whose file is `image`."""
        return [Question(image, text, not self.phrase, self.explain) for text in self.texts]


def named(number: int, count: int) -> str:
    """A question's name in messages; the first of a request is number 0."""
    return "question" if count == 1 else f"question {number + 1} of {count}"


@dataclass(frozen=True)
class Answered:
    """The picture's height and width, and a row for each question."""

    size: tuple[int, int]
    rows: tuple[dict[str, Any], ...]


class NotAnswered(Exception):
    """Why a request has no answer, for the client; `status` is HTTP's."""

    def __init__(self, status: int, why: str, hint: str = "", retry_seconds: int = 0) -> None:
        super().__init__(why)
        self.status, self.why, self.hint, self.retry_seconds = status, why, hint, retry_seconds

    def document(self) -> dict[str, str]:
        """As the client reads it."""
        return {"error": self.why} | ({"hint": self.hint} if self.hint else {})
