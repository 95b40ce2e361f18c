"""Actions that may take minutes: lines of JSON say how far they are, and the last is the answer."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse

from studio.places import Places
from trainer.reporter import Progress

PAUSE = 1.0  # seconds before the first line, and between two
KIND = "application/x-ndjson"


@dataclass(frozen=True)
class Slow:
    """An action that tells its progress."""

    work: Callable[[Any, Places, Progress], Any]


class Left(BaseException):
    """Nobody waits for the answer any more; error handlers must let this pass."""


class Watched:
    """How far a piece of work is. If the browser has left, the next report ends the work."""

    def __init__(self) -> None:
        self.words, self.left = "", False

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.left:
            raise Left
        self.words = f"{what}: {done} of {total}"


async def answered(work: Coroutine[Any, Any, Response], watched: Watched) -> Response:
    """The work's answer if it comes at once, else lines until it comes."""
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait([task], timeout=PAUSE)
    return task.result() if done else StreamingResponse(lines(task, watched), media_type=KIND)


async def lines(task: asyncio.Task[Response], watched: Watched) -> AsyncIterator[bytes]:
    """A line each second on how far the work is, then its answer."""
    try:
        while not task.done():
            yield _line({"progress": watched.words})
            await asyncio.wait([task], timeout=PAUSE)
    finally:
        watched.left = True
    try:
        yield bytes(task.result().body) + b"\n"
    except Exception:  # a defect: not explained to the browser
        traceback.print_exc()
        yield _line({"error": "the server failed"})


def _line(content: dict[str, str]) -> bytes:
    return json.dumps(content).encode() + b"\n"
