"""The masks of answers over their picture, drawn for the Ask tab."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Base64Bytes, Field

from profiles.records import Frozen
from studio.data import LARGEST_SIDE, png
from trainer.data.findings import DataError, Report
from trainer.data.formats.coco_masks import painted, read_parts
from trainer.data.images import read_image, size_of
from trainer.data.overlays import COLOURS, captioned, overlay
from trainer.serve.limits import Limits

PIXELS = Limits().pixels
DRAWING = Lock()  # one at a time: a large picture with its layers takes hundreds of megabytes
MOST_MASKS = 256  # of all questions of a request together


class Drawing(Frozen):
    """A picture and the masks of its answers, and what to make of them."""

    picture: Base64Bytes = Field(repr=False)
    masks: tuple[dict[str, Any], ...] = Field(max_length=MOST_MASKS)
    shown: tuple[int, ...] = Field((), max_length=MOST_MASKS)  # numbers of masks, each in a colour
    opacity: float = Field(0.35, ge=0, le=1)
    caption: str = Field("", max_length=2000)
    kind: Literal["overlay", "mask"] = "overlay"
    most: int = Field(1200, ge=16, le=65_535)


def draw(drawing: Drawing) -> bytes:
    """The picture with the shown masks over it, or the shown masks alone, as PNG.

    Raises DataError, ValueError.
    """
    with DRAWING:
        return _drawn(drawing)


def _drawn(drawing: Drawing) -> bytes:
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
            if (size := math.prod(size_of(path))) > PIXELS:
                raise ValueError(
                    f"picture: got {size} pixels; allowed: {PIXELS}, as for a question"
                )
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
