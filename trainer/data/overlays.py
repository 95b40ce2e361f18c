"""Pictures with masks laid over them, and sheets of several to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from profiles.files import write_whole

PREDICTED, TRUE, IGNORED = (255, 60, 0), (0, 200, 255), (255, 220, 0)
COLOURS = (PREDICTED, TRUE, IGNORED, (160, 60, 255), (0, 220, 90))  # of several masks
TILE, TITLE = 256, 18  # pixels


@dataclass(frozen=True)
class Row:
    """One line of a contact sheet: a title, and pictures [H, W, 3] with their captions."""

    title: str
    tiles: tuple[tuple[str, NDArray[np.uint8]], ...]


def overlay(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """The picture [H, W, 3] with a mask [H, W] laid over it at half strength."""
    shown = image.copy()
    shown[mask] = (image[mask] * 0.5 + np.array(colour) * 0.5).astype(np.uint8)
    return shown


def write_sheet(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows, one below the other, as the kind of picture that the suffix names.

    Raises ValueError for a suffix that names none.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: {path.suffix or 'no suffix'} names no kind of picture; try .png")
    width = TILE * max((len(row.tiles) for row in rows), default=1)
    height = TILE + TITLE
    sheet = Image.new("RGB", (width, max(1, len(rows)) * height), "white")
    for number, row in enumerate(rows):
        _draw(sheet, row, number * height)
    picture = BytesIO()
    sheet.save(picture, kind)
    write_whole(path, picture.getvalue())
    return path


def _draw(sheet: Image.Image, row: Row, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((4, top + 3), row.title, fill="black")
    for column, (caption, picture) in enumerate(row.tiles):
        tile = Image.fromarray(picture)
        tile.thumbnail((TILE, TILE))
        sheet.paste(tile, (column * TILE, top + TITLE))
        # In the tile: a long title runs over the whole line above it.
        draw.text((column * TILE + 4, top + TITLE + 2), caption, fill="white", stroke_width=1,
                  stroke_fill="black")  # fmt: skip
