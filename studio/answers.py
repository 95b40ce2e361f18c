"""The Ask tab: one model at a time, in its own process; it is unloaded when it is not used."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from advisor.inference import NoRoom, fitting, worst_question
from advisor.machine.probe import probe
from profiles.environment import at_home, python_module
from profiles.files import writer
from profiles.records import Frozen
from profiles.sizes import mib
from profiles.streams import tell
from studio.places import Places, folders, kind_of
from trainer.answer.trained_model import ORIGIN, Trained, find_trained
from trainer.run.folder import TRAINED
from trainer.serve.asked import Answered, Asked
from trainer.serve.child import Child, Gone
from trainer.serve.limits import RESIDENT
from trainer.serve.workers import Workers

PROCESS = "trainer.cli.model_process"
IDLE_SECONDS = 600.0  # without a question: then the model leaves the memory


class Model(Frozen):
    """A model, by its place."""

    model: str = Field(max_length=4000)


class Desk(Workers):
    """Holds the one model that answers; choosing another unloads the first."""

    def __init__(self, places: Places) -> None:
        super().__init__([], tell=tell)
        self.places = places
        self.loaded = ""  # the model's place
        self.changing = asyncio.Lock()
        self.leaving: asyncio.Task[None] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="lisa-studio-")

    def state(self) -> dict[str, Any]:
        """Which model is loaded, and the facts that it reports."""
        return {"loaded": self.loaded if self.ready else "", "loading": self.changing.locked(),
                "facts": self.facts if self.ready else {}}  # fmt: skip

    async def load(self, model: Model) -> dict[str, Any]:
        """Load a model in place of the one before. Raises ValueError, RuntimeError."""
        folder = self.places.folder(model.model)
        async with self.changing:
            await self.stop()
            self.loaded = ""
            asked = {"run": str(folder), "set": [], "folder": self.folder.name,
                     "pixels": self.limits.pixels}  # fmt: skip
            command = python_module(PROCESS, json.dumps(asked))
            self.children = [Child(command, at_home(os.environ))]
            try:
                await self.start()
            except Gone as error:
                raise RuntimeError(str(error)) from None
            self.loaded = model.model
        self._stay()
        return self.state()

    async def unload(self) -> dict[str, Any]:
        """Unload the model."""
        async with self.changing:
            await self._let_go()
        return self.state()

    async def _let_go(self) -> None:
        await self.stop()
        self.loaded, self.children = "", []

    async def ask(self, asked: Asked) -> Answered:
        """The model's answers. Raises NotAnswered."""
        try:
            return await super().ask(asked)
        finally:
            self._stay()

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """The model ends when the page is no longer served."""
        try:
            yield
        finally:
            await self.stop()
            self.folder.cleanup()

    def _stay(self) -> None:
        """Count the idle time from now on."""
        if self.leaving is not None:
            self.leaving.cancel()
        self.leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        await asyncio.sleep(IDLE_SECONDS)
        async with self.changing:
            if not self.waiting:
                self.leaving = None  # a question that comes now must not stop this halfway
                await self._let_go()


def models(places: Places) -> dict[str, Any]:
    """The models that can be asked: runs with a best checkpoint, exports, converted folders."""
    found = {}
    for folder in _candidates(places):
        place, kind = places.place(folder), _kind_of_model(folder)
        if place is None or not kind or places.way_out(folder):
            continue
        with suppress(ValueError, OSError):  # not whole: no model
            name = find_trained(folder, sees_gpu=lambda: False).plan.model
            found[place] = {"model": place, "kind": kind, "name": name}
    return {"models": list(found.values())}


def _candidates(places: Places) -> Iterator[Path]:
    """The page's folders and those of two levels below; what is in a run or a model is not one."""
    for root in places.roots.values():
        level = [root]
        for _ in range(3):
            yield from level
            level = [below for one in level if kind_of(one) not in ("run", "model", "data")
                     for below in folders(one)]  # fmt: skip


def _kind_of_model(folder: Path) -> str:
    if (folder / "best" / TRAINED).is_file():
        return "run"
    if (folder / ORIGIN).is_file():
        return "converted"
    return "export" if (folder / TRAINED).is_file() else ""


def memory(model: Model, places: Places) -> dict[str, Any]:
    """What a model takes in memory, said before it is loaded. Raises RehearsalFailed."""
    machine = probe()
    trained = find_trained(places.folder(model.model), [RESIDENT],
                           sees_gpu=lambda: bool(machine.gpus))  # fmt: skip
    plan = trained.plan
    if plan.device == "cpu":
        size = sum(one.stat().st_size for one in _weights(trained))
        files_have = f"its weights' files have {mib(size)}"
        return {"words": f"on this machine's CPU: {files_have}, the libraries take more than that"}
    worst = worst_question(plan.tokens.max_text_tokens, plan.profile.most_image_tokens)
    try:
        words = fitting(plan, trained.may_round, worst, machine, tell).line()
    except NoRoom as error:
        return {"words": str(error)}
    # What is free now is not free later: a pool grows until the longest sample was there.
    busy = [run.name for run in places.runs() if writer(run) is not None]
    return {"words": words + "".join(f"; {name} is training here and may run out of memory then"
                                     for name in busy)}  # fmt: skip


def _weights(trained: Trained) -> Iterator[Path]:
    """The files of a model's weights: the base's and the trained ones."""
    packaged = files("profiles") / trained.plan.model
    base = packaged if trained.plan.weights == "default" else trained.plan.weights
    for folder in filter(None, (Path(str(base)), trained.folder)):
        yield from folder.glob("*.safetensors")
