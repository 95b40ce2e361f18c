"""All processes that hold the model, and the requests that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from trainer.serve.asked import Answered, Asked, NotAnswered
from trainer.serve.child import Child, Gone
from trainer.serve.limits import Limits

NOT_LOADED = "the model is not loaded"
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries to start a process


class Workers:
    """Processes by command and environment, one a card; a request has one of them to itself.

    A process that ends is replaced, and the request that it had gets an error. The others wait.
    """

    def __init__(
        self,
        processes: Sequence[tuple[Sequence[str], Mapping[str, str]]],
        limits: Limits | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.limits = limits or Limits()
        self.children = [Child(command, environment) for command, environment in processes]
        self.tell = tell
        self.waiting = 0  # requests that have a place
        # Each loading has its own: after `stop` the next one starts with nothing left over.
        self.idle: asyncio.Queue[Child | None] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()
        self.started = False

    @property
    def ready(self) -> int:
        """How many processes have loaded the model and run."""
        return sum(child.loaded and child.pid is not None for child in self.children)

    @property
    def facts(self) -> dict[str, Any]:
        """About the model; empty before it was loaded."""
        return next((child.facts for child in self.children if child.facts), {})

    async def start(self) -> None:
        """Start all processes and wait for their models. Raises Gone: none runs then."""
        begun = [asyncio.create_task(child.start()) for child in self.children]
        done = await asyncio.gather(*begun, return_exceptions=True)
        failed = [error for error in done if error is not None]
        if failed:
            await self.stop()
            raise failed[0]
        self.started = True
        for child in self.children:
            self.idle.put_nowait(child)

    async def stop(self) -> None:
        """End all processes. Whoever waits for one gets an error that says so."""
        self.started, left = False, self.idle
        self.idle = asyncio.Queue()
        for _ in range(self.waiting):
            left.put_nowait(None)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self.children))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those that wait, and its time. Raises NotAnswered: 429, 504."""
        if self.waiting >= self.limits.waiting:
            raise NotAnswered(429, "too many requests are waiting", "ask again later", 2)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            why = f"no answer within {self.limits.seconds:g} s"
            raise NotAnswered(504, why, "ask fewer questions at once", 5) from None
        finally:
            self.waiting -= 1

    @property
    def problem(self) -> str:
        """Why no request can be answered now or soon; else empty."""
        if not self.started:
            return NOT_LOADED
        problems = [child.problem for child in self.children]
        return problems[0] if all(problems) else ""

    async def ask(self, asked: Asked) -> Answered:
        """The answers of the next process that is free. Raises NotAnswered."""
        if self.problem:
            raise NotAnswered(503, self.problem, retry_seconds=5)
        idle = self.idle
        while (child := await idle.get()) is None or child.pid is None:
            if child is None:
                raise NotAnswered(503, NOT_LOADED, retry_seconds=5)
            self._give_back(child, idle)  # it ended while nobody asked
        try:
            return await child.answer(asked)
        except Gone as error:
            why = f"the model's process {error} while it answered"
            raise NotAnswered(503, why, "ask again: a new one is starting", 5) from None
        finally:
            self._give_back(child, idle)

    def _give_back(self, child: Child, idle: asyncio.Queue[Child | None]) -> None:
        """Let the next request have a process, once it is there and free."""
        if idle is not self.idle:
            return
        if child.pid is not None and not child.busy:
            idle.put_nowait(child)
            return
        task = asyncio.create_task(self._recover(child))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _recover(self, child: Child) -> None:
        """Let a process finish a request that nobody waits for; replace it if it takes too long."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                await child.finish()  # raises Gone if it has ended
        except (Gone, TimeoutError, ConnectionError) as error:
            self.tell(f"the model's process {str(error) or 'did not stop'}: starting a new one")
            await self._replace(child)
        self.idle.put_nowait(child)

    async def _replace(self, child: Child) -> None:
        pause = PAUSE
        while True:
            try:
                return await child.start()
            except Gone as error:
                self.tell(f"{error}; next try in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
