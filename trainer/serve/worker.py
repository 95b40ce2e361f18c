"""The process that holds the model: reads requests from stdin, writes answers to stdout."""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from profiles.files import reason
from trainer.answer.output import run_lengths
from trainer.answer.question import Question, Stopped
from trainer.data.findings import DataError
from trainer.data.images import size_of
from trainer.prompts import PromptError
from trainer.serve.asked import Asked, named
from trainer.serve.messages import Message, packed, read

if TYPE_CHECKING:
    from trainer.answer.segmenter import Segmenter


class Refused(ValueError):
    """What is asked cannot be answered; for the client, so without names of files."""


class Worker:
    """Answers requests one after the other, the questions of each together.

    The last picture's features and prefix stay: questions about it in a row share them.
    """

    def __init__(self, segmenter: Segmenter, pixels: int, text_tokens: int) -> None:
        """Pictures and questions have at most these numbers of pixels and tokens.

        The picture that is asked about is written into the current folder: nobody else writes
        there, and messages name the file without its path.
        """
        Image.MAX_IMAGE_PIXELS = pixels
        self.segmenter, self.text_tokens = segmenter, text_tokens
        self.requests: queue.Queue[Message] = queue.Queue()
        self.left = threading.Event()  # nobody waits for the rest of this request's answers
        segmenter.stopped = self.left.is_set

    def serve(self, source: BinaryIO, sink: BinaryIO, facts: Mapping[str, Any]) -> None:
        """Announce the model, and answer until the server is gone."""
        _send(sink, {"ready": dict(facts)})
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()
        while True:
            self._answer(self.requests.get(), sink)

    def _listen(self, source: BinaryIO) -> None:
        while (message := read(source)) is not None:
            if "cancel" in message.header:
                self.left.set()
            else:
                self.left.clear()  # the server asks again only after the end of a request
                self.requests.put(message)
        os._exit(0)  # at once, whatever the model computes: nobody is there to read it

    def _answer(self, message: Message, sink: BinaryIO) -> None:
        header = message.header
        number = header["ask"]
        asked = Asked(message.body, tuple(header["texts"]), header["phrase"], header["explain"])
        try:
            with suppress(Stopped):
                for row in self._rows(self._checked(asked)):
                    _send(sink, {"number": number, **row})
                    if self.left.is_set():
                        break
            _send(sink, {"number": number, "end": True})
        except Refused as error:
            _send(sink, {"number": number, "refused": str(error)})
        except Exception:
            # A failed kernel leaves the card in an unknown state: a new process is needed.
            traceback.print_exc()
            os._exit(1)

    def _checked(self, asked: Asked) -> list[Question]:
        """The questions, about the picture as a file. Raises Refused."""
        image = _written(asked.picture)
        questions = asked.questions(image)
        try:
            size_of(image)
        except DataError as error:
            raise Refused(_shown(error)) from None
        for number, question in enumerate(questions):
            self._check(question, named(number, len(questions)))
        return questions

    def _check(self, question: Question, which: str) -> None:
        try:
            tokens = self.segmenter.text_tokens([question])
        except PromptError as error:
            raise Refused(f"{which}: {error}") from None
        if tokens > self.text_tokens:
            raise Refused(f"{which} has {tokens} tokens; {self.text_tokens} are allowed")

    def _rows(self, questions: list[Question]) -> Iterator[dict[str, Any]]:
        """Each answer with the picture's size. Raises Refused."""
        answers = self.segmenter.ask_all(questions, self.segmenter.plan.tokens.max_masks)
        try:
            for question, answer in zip(questions, answers, strict=True):
                row = {"question": question.text, "answer": answer.text,
                       "seconds": round(answer.seconds, 3), "masks_left_out": answer.left_out,
                       "masks": [run_lengths(mask) for mask in answer.masks]}  # fmt: skip
                yield {"row": row, "size": answer.masks.shape[1:]}
        except DataError as error:
            raise Refused(_shown(error)) from None


def _send(sink: BinaryIO, header: Mapping[str, Any]) -> None:
    sink.write(packed(header))
    sink.flush()


def _written(picture: bytes) -> Path:
    """The picture as a file named after its checksum; the last picture's file is removed.

    Raises Refused where it cannot be written: the model need not load again for that.
    """
    image = Path(f"picture-{hashlib.sha256(picture).hexdigest()}")
    for other in Path().glob("picture-*"):
        if other != image:
            other.unlink()
    if not image.exists():
        try:
            image.write_bytes(picture)
        except OSError as error:
            image.unlink(missing_ok=True)  # or half of it would stand for the whole
            raise Refused(f"picture: the server cannot keep it: {reason(error)}") from None
    return image


def _shown(error: DataError) -> str:
    """What is wrong with a picture, with the field's name in place of the file's."""
    found = ((f"picture{one.what.removeprefix('image')}", one.fix) for one in error.findings)
    return "; ".join(f"{what}. Fix: {fix}" for what, fix in found)


def own_stdout() -> BinaryIO:
    """stdout for messages only: whatever else prints goes to stderr."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return sink


def report_failure(sink: BinaryIO, why: str) -> None:
    """Say why there is no model."""
    _send(sink, {"failed": why})
