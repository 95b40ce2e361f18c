"""The Ask tab: one model at a time in a process of its own, unloaded when nobody asks it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Base64Bytes, Field

from advisor.inference import NoRoom, fitting, worst_question
from advisor.machine.probe import probe
from profiles.environment import at_home, python_module
from profiles.records import Frozen
from profiles.sizes import mib
from profiles.streams import tell
from studio.data import LARGEST_SIDE, png
from studio.places import Places, folders, kind_of
from trainer.answer.trained_model import ORIGIN, Trained, find_trained
from trainer.data.findings import DataError, Report
from trainer.data.formats.coco_masks import painted, read_parts
from trainer.data.images import read_image
from trainer.data.overlays import COLOURS, captioned, overlay
from trainer.run.folder import TRAINED
from trainer.serve.asked import Answered, Asked
from trainer.serve.child import Child, Gone
from trainer.serve.workers import Workers

PROCESS = "trainer.cli.model_process"
IDLE_SECONDS = 600.0  # without a question: then the model leaves the memory
MOST_MASKS = 256  # of all questions of a request together


class Model(Frozen):
    """A model, by its place."""

    model: str = Field(max_length=4000)


class Drawing(Frozen):
    """A picture and the masks of its answers, and what to make of them."""

    picture: Base64Bytes = Field(repr=False)
    masks: tuple[dict[str, Any], ...] = Field(max_length=MOST_MASKS)
    shown: tuple[int, ...] = Field((), max_length=MOST_MASKS)  # numbers of masks, each in a colour
    opacity: float = Field(0.35, ge=0, le=1)
    caption: str = Field("", max_length=2000)
    kind: Literal["overlay", "mask"] = "overlay"
    most: int = Field(1200, ge=16, le=65_535)


class Desk(Workers):
    """Where one model answers; choosing another lets the first go."""

    def __init__(self, places: Places) -> None:
        super().__init__([], tell=tell)
        self.places = places
        self.loaded = ""  # the model's place
        self.changing = asyncio.Lock()
        self.leaving: asyncio.Task[None] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="lisa-studio-")

    def state(self) -> dict[str, Any]:
        """Which model is loaded, and what it says of itself."""
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
        """Let the model go."""
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
        if place is None or not kind:
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
    trained = find_trained(places.folder(model.model), ["cached_encoders=[]"],
                           sees_gpu=lambda: bool(machine.gpus))  # fmt: skip
    plan = trained.plan
    if plan.device == "cpu":
        size = sum(one.stat().st_size for one in _weights(trained))
        files_have = f"its weights' files have {mib(size)}"
        return {"words": f"on this machine's CPU: {files_have}, the libraries take more than that"}
    worst = worst_question(plan.tokens.max_text_tokens, plan.profile.most_image_tokens)
    try:
        return {"words": fitting(plan, trained.may_round, worst, machine, tell).line()}
    except NoRoom as error:
        return {"words": str(error)}


def _weights(trained: Trained) -> Iterator[Path]:
    """The files of a model's weights: the base's and the trained ones."""
    packaged = files("profiles") / trained.plan.model
    base = packaged if trained.plan.weights == "default" else trained.plan.weights
    for folder in filter(None, (Path(str(base)), trained.folder)):
        yield from folder.glob("*.safetensors")


def draw(drawing: Drawing) -> bytes:
    """The picture with the shown masks over it, or the shown masks alone, as PNG.

    Raises DataError, ValueError.
    """
    image = _decoded(drawing.picture)
    size = image.shape[0], image.shape[1]
    chosen = [number for number in dict.fromkeys(drawing.shown) if 0 <= number < len(drawing.masks)]
    # One after the other: hundreds of a large picture's size would be gigabytes.
    whole = (_mask(drawing.masks[number], number, size) for number in chosen)
    if drawing.kind == "mask":
        every = np.zeros(size, bool)
        for mask in whole:
            every |= mask
        return png(Image.fromarray(every.astype(np.uint8) * 255), drawing.most)
    image, masks = _shrunk(image, whole, drawing.most)
    colours = [COLOURS[number % len(COLOURS)] for number in chosen]
    if masks:
        image = overlay(image, masks, colours, drawing.opacity)
    return png(Image.fromarray(captioned(image, drawing.caption) if drawing.caption else image))


def _decoded(picture: bytes) -> NDArray[np.uint8]:
    """A picture of a request. Raises ValueError, without the name of its file here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(picture)
        try:
            return read_image(path)
        except DataError as error:
            raise ValueError("; ".join(f"{one.what}. Fix: {one.fix}" for one in error.findings)
                             .replace(str(path), "picture")) from None  # fmt: skip


def _mask(value: dict[str, Any], number: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of run lengths, which a stranger may have written. Raises DataError."""
    report = Report(Path(f"masks[{number}]"))
    runs = {"size": value.get("size"), "counts": value.get("counts")}
    parts = read_parts(report, "mask", runs, size)
    if parts is None:
        raise DataError(report.findings)
    return painted(parts, *size) == 1


def _shrunk(
    image: NDArray[np.uint8], masks: Iterator[NDArray[np.bool_]], most: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Picture and masks at the size they are shown in: lines are drawn at that size."""
    small = Image.fromarray(image)
    small.thumbnail((min(most, LARGEST_SIDE),) * 2)
    if small.size == image.shape[1::-1]:
        return image, list(masks)
    scaled = [np.asarray(Image.fromarray(mask).resize(small.size)) for mask in masks]
    return np.asarray(small), scaled
