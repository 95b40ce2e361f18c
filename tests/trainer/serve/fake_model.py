"""The process of a model that does as it is asked: `sleep 0.2`, `halves 0.1`, `die`, `raise`.

Whatever it is asked, its answer names the picture, and its mask is one row high for each letter.
The file `slept` has a letter for each time that it slept.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from trainer.answer.question import Answer, Question
from trainer.data.images import read_image
from trainer.serve.worker import Worker, own_stdout, report_failure


class FakePlan:
    class tokens:
        max_masks = 8


class FakeSegmenter:
    plan = FakePlan

    def text_tokens(self, questions: Sequence[Question]) -> int:
        return max(len(question.text.split()) for question in questions)

    def ask_all(
        self, questions: Sequence[Question], most_masks: int | None = None
    ) -> Iterator[Answer]:
        return map(self.ask, questions)

    def ask(self, question: Question) -> Answer:
        order, _, value = question.text.partition(" ")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise RuntimeError("CUDA error: a secret place /root")
        if order == "sleep":
            time.sleep(float(value))
            with open("slept", "a") as file:
                file.write("z")
        if order == "halves":
            Halves.pause = float(value)
        if order == "print":
            print("not a message", flush=True)
            os.write(1, b"nor is this")
        height, width = read_image(question.image).shape[:2]
        mask = np.zeros((1, height, width), bool)
        mask[0, : len(question.text)] = True
        return Answer(f"{question.image.name}: {question.text}", mask, 0.0)


class Halves(io.RawIOBase):
    """Writes every message in two halves, so that a reader may be interrupted between them."""

    pause = 0.0  # between them, in seconds

    def __init__(self, sink: BinaryIO) -> None:
        self.sink = sink

    def write(self, data: Any) -> int:
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.sink.write(part)
            self.sink.flush()
            time.sleep(self.pause)
        return len(data)


def main() -> None:
    """Arguments: a folder, and a file that, if it is there, says why the model cannot load."""
    sink: Any = Halves(own_stdout())
    os.chdir(sys.argv[1])
    if os.path.exists(sys.argv[2]):
        with open(sys.argv[2]) as file:
            report_failure(sink, file.read())
        sys.exit(1)
    worker = Worker(FakeSegmenter(), pixels=10_000, text_tokens=50)
    worker.serve(sys.stdin.buffer, sink, {"model": "fake"})


if __name__ == "__main__":
    main()
