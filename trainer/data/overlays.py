"""Pictures to look at: masks laid over a picture, captions, and sheets of several pictures.

Everything that shows a mask draws it here, so that a mask looks the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from profiles.files import write_whole
from profiles.own_files import MARK
from profiles.text import one_line

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PREDICTED, TRUE, IGNORED = (255, 60, 0), (0, 200, 255), (160, 60, 255)
COLOURS = (PREDICTED, TRUE, IGNORED, (230, 160, 0), (0, 220, 90), (255, 110, 200), (0, 70, 255),
           (150, 90, 30))  # of several masks  # fmt: skip
OPACITY, DIMMED = 0.35, 0.45
TILE, TITLE = 256, 20  # pixels of a sheet
LINES = 3  # of a caption at most


@dataclass(frozen=True)
class Tile:
    """A picture [H, W, 3] of a sheet with its caption, and masks [H, W] to lay over it."""

    caption: str
    image: Picture
    masks: tuple[Mask, ...] | None = None  # None: the picture as it is
    colours: tuple[Colour, ...] = COLOURS


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a title, and pictures."""

    title: str
    tiles: tuple[Tile, ...]


def overlay(
    image: Picture,
    masks: Sequence[Mask],
    colours: Sequence[Colour] = COLOURS,
    opacity: float = OPACITY,
) -> Picture:
    """The picture [H, W, 3] with masks [H, W] laid over it, each in the next of the colours.

    What no mask covers is dimmed. Every mask has a light line inside its edge and a dark one
    outside: one of the two is seen on any ground, and on shapes of the mask's own colour.
    """
    covered = np.zeros(image.shape[:2], bool)
    for mask in masks:
        covered |= mask
    shown = np.where(covered[..., None], image, image * DIMMED).astype(np.uint8)
    width = max(1, round(max(image.shape[:2]) / 300))
    for number, mask in enumerate(masks):
        _lay(shown, mask, np.array(colours[number % len(colours)]), opacity, width)
    return shown


def _lay(shown: Picture, mask: Mask, colour: NDArray[np.int_], opacity: float, width: int) -> None:
    """Tint a mask in `shown` and draw its two lines, `width` pixels wide."""
    flat, brush = mask.astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inner = cv2.erode(flat, brush, borderType=cv2.BORDER_CONSTANT, borderValue=(0,)) == 1
    outer = cv2.dilate(flat, brush) == 1
    shown[mask] = (shown[mask] * (1 - opacity) + colour * opacity).astype(np.uint8)
    shown[outer & ~mask] = 0
    shown[mask & ~inner] = (colour + 3 * 255) // 4


def captioned(image: Picture, text: str) -> Picture:
    """The picture below its caption: a question, an answer or a score, shortened if it is long."""
    height, width = image.shape[:2]
    font = _font(max(12, width // 45))
    lines = _wrapped(one_line(text), font, width - 8)
    step = round(font.size * 1.4)
    page = Image.new("RGB", (width, height + len(lines) * step + 6), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((4, 3 + number * step), line, fill="black", font=font)
    page.paste(Image.fromarray(image), (0, len(lines) * step + 6))
    return np.asarray(page)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of `width` pixels, at most `LINES`; an ellipsis stands for the rest."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < LINES:
        count = _fitting(rest, font, width)
        space = rest.rfind(" ", 0, count + 1)
        if count < len(rest) and space > 0:
            count = space
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    if rest:
        lines[-1] = _shortened(f"{lines[-1]} {rest}", font, width)
    return lines or [""]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The beginning of the text that fits into `width` pixels; an ellipsis stands for the rest."""
    count = _fitting(text, font, width)
    if count == len(text):
        return text
    return text[: _fitting(text, font, width - font.getlength("…"))].rstrip() + "…"


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many letters of the text fit into `width` pixels; at least one if there are any."""
    text = text[:1000]  # longer ones fit nowhere
    low, high = min(1, len(text)), len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has Latin letters alone."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def _marked() -> dict[str, Any]:
    """What Pillow is given so that a PNG, a JPEG or a GIF says who wrote it."""
    text = PngInfo()
    text.add_text("Software", MARK)
    return {"pnginfo": text, "comment": MARK.encode()}


MARKED = _marked()


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
    return write_picture(sheet, path, kind)


def write_picture(picture: Image.Image, path: Path, kind: str = "PNG") -> Path:
    """Write a picture whole, marked as this project's. Raises OSError."""
    content = BytesIO()
    # zlib's usual effort takes two to four times as long for a tenth fewer bytes.
    picture.save(content, kind, **MARKED, compress_level=1)
    write_whole(path, content.getvalue())
    return path


def _draw(sheet: Image.Image, row: Row, top: int) -> None:
    draw, font = ImageDraw.Draw(sheet), _font(12)
    title = _shortened(one_line(row.title), font, len(row.tiles) * TILE - 8)
    draw.text((4, top + 3), title, fill="black", font=font)
    for column, tile in enumerate(row.tiles):
        sheet.paste(Image.fromarray(_shrunk(tile)), (column * TILE, top + TITLE))
        # In the tile: a long title runs over the whole line above it.
        lines = "\n".join(_shortened(one_line(line), font, TILE - 8)
                          for line in tile.caption.split("\n"))  # fmt: skip
        draw.text((column * TILE + 4, top + TITLE + 2), lines, fill="white", font=font,
                  stroke_width=1, stroke_fill="black")  # fmt: skip


def _shrunk(tile: Tile) -> Picture:
    """A tile's picture at its size on the sheet; masks are laid over that, so lines stay whole."""
    picture = Image.fromarray(tile.image)
    picture.thumbnail((TILE, TILE))
    small = np.asarray(picture)
    if tile.masks is None:
        return small
    masks = [_resized(mask, picture.size) for mask in tile.masks]
    return overlay(small, masks, tile.colours)


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at another (width, height); a pixel of it stays one, however small it becomes."""
    shrunk = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk > 0.5) if (shrunk > 0.5).any() else np.asarray(shrunk > 0)
