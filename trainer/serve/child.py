"""One process that holds the model, as the server sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from trainer.serve.asked import Answered, Asked, NotAnswered
from trainer.serve.messages import Message, packed, received

LARGEST_READ = 1 << 20  # bytes that asyncio holds of what the process writes


class Gone(Exception):
    """The process has ended; says how."""


class Child:
    """Started by a command; answers one request at a time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.command, self.environment = command, environment
        self.facts: dict[str, Any] = {}  # about the model, once it was loaded
        self.loaded = False
        self.process: asyncio.subprocess.Process | None = None
        self.numbers = count(1)
        self.busy = False  # with a request whose end was not read
        self.problem = ""  # why it could not be started the last time
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process is not None and running else None

    async def start(self) -> None:
        """Start the process and wait for its model. Raises Gone with the reason."""
        await self.kill()
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=pipe, stdout=pipe, limit=LARGEST_READ,
            env=dict(self.environment), start_new_session=True,  # Ctrl-C is the server's
        )  # fmt: skip
        assert self.process.stdout is not None
        self.busy, self.messages = False, asyncio.Queue()
        self.reading = asyncio.create_task(_read_all(self.process.stdout, self.messages))
        self.loaded = False
        try:
            header = await self._loading()
        except BaseException as error:
            self.problem = str(error)
            await self.kill()
            raise
        self.facts, self.problem, self.loaded = header["ready"], "", True

    async def _loading(self) -> dict[str, Any]:
        """The first message, with the model's facts. Raises Gone."""
        try:
            header = (await self._next()).header
        except Gone as error:
            raise Gone(f"the model's process {error} while it loaded") from None
        if "failed" in header:
            raise Gone(str(header["failed"]))
        return header

    async def answer(self, asked: Asked) -> Answered:
        """Ask, and wait for every answer. Raises Gone, NotAnswered.

        If it is cancelled, the process is `busy` until `finish` has come back.
        """
        number = next(self.numbers)
        rows: list[dict[str, Any]] = []
        size = (0, 0)
        self.busy = True
        header = {"ask": number, "texts": asked.texts, "phrase": asked.phrase,
                  "explain": asked.explain}  # fmt: skip
        self._send(header, asked.picture)
        while True:
            reply = (await self._next()).header
            if reply.get("number") != number:
                await self.kill()
                raise Gone(f"answered request {reply.get('number')} instead of {number}")
            if "row" in reply:
                rows.append(reply["row"])
                size = (reply["size"][0], reply["size"][1])
            else:
                break
        self.busy = False
        if "refused" in reply:
            status = int(reply["status"])
            raise NotAnswered(status, str(reply["refused"]), retry_seconds=5 * (status == 503))
        return Answered(size, tuple(rows))

    async def finish(self) -> None:
        """Cancel the rest of a request that nobody waits for. Raises Gone."""
        if self.pid is None:
            raise Gone("ended")
        self._send({"cancel": True})
        while self.busy:
            reply = (await self._next()).header
            self.busy = "row" in reply

    async def kill(self) -> None:
        """End the process, if it runs."""
        if self.process is None:
            return
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        if self.reading is not None:
            self.reading.cancel()

    def _send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(packed(header, body))

    async def _next(self) -> Message:
        """The process's next message. Raises Gone."""
        message = await self.messages.get()
        if message is not None:
            return message
        self.messages.put_nowait(None)  # the end stays the end
        assert self.process is not None
        code = await self.process.wait()
        raise Gone(f"ended by signal {-code}" if code < 0 else f"ended with code {code}")


async def _read_all(stream: asyncio.StreamReader, messages: asyncio.Queue[Message | None]) -> None:
    """All of a process's messages, and None at its end.

    Runs as a separate task: a reader cancelled inside a message would leave the message's rest.
    """
    try:
        while True:
            messages.put_nowait(await received(stream))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        messages.put_nowait(None)
