"""Label Studio's regions as COCO's segmentations: polygons, ellipses and brush masks.

A region's numbers are percentages of the picture as the annotator saw it; a brush mask is run
lengths of RGBA, whose alpha channel is the mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from profiles.files import reason
from trainer.data.arrays import FloatArray, Size
from trainer.data.formats.coco_masks import Refused

_ELLIPSE_POINTS = 120
_OUTSIDE = 5  # per cent of the picture that Label Studio's outlines may reach beyond it
_READ = "a polygon, an ellipse or a brush mask"
_REDRAW = "outline it so in Label Studio and export again"
_KEYS = ("x", "y", "width", "height", "radiusX", "radiusY")


def coordinates(value: dict[str, Any]) -> FloatArray | None:
    """All numbers of a polygon, an ellipse or a rectangle; None for a mask and what is broken."""
    try:
        if "points" in value:
            return np.array(value["points"], float).ravel()
        return np.array([value[key] for key in _KEYS if key in value], float)
    except (TypeError, ValueError, OverflowError):
        return None


def shape_of(value: dict[str, Any], size: Size) -> dict[str, Any]:
    """COCO's segmentation of a region, or why it is refused; a rectangle has its bbox as well."""
    height, width = size
    scale = np.array([width, height]) / 100
    try:
        if "rle" in value:
            painted = coco_mask.encode(np.asfortranarray(_painted(value["rle"], size)))
            painted["counts"] = painted["counts"].decode()
            return {"segmentation": painted}
        if refused := _refusal(value):
            return {"segmentation": refused} | _box(value, scale)
        if "points" in value:
            return {"segmentation": [(np.array(value["points"], float) * scale).ravel().tolist()]}
        return {"segmentation": [(_ellipse(value, scale)).ravel().tolist()]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return {"segmentation": reason(error)}


def _refusal(value: dict[str, Any]) -> Refused | None:
    """Why a region is not read, although it may be sound in Label Studio."""
    at = value["points"] if "points" in value else [value[key] for key in "xy" if key in value]
    places = np.array(at, float)
    if places.size and (places.min() < -_OUTSIDE or places.max() > 100 + _OUTSIDE):
        allowed = "per cent of the picture's width and height, 0 to 100"
        fix = "if they are pixels, make them per cent: 100 x / width, 100 y / height"
        got = f"numbers from {places.min():g} to {places.max():g}"
        return Refused(got, allowed, fix)
    if "points" in value or "radiusX" in value:
        return None
    if "width" in value and "height" in value:
        return Refused("a rectangle: a box around a thing, not its outline", _READ, _REDRAW)
    return Refused("a point, a bitmask or a vector", _READ, _REDRAW)


def _box(value: dict[str, Any], scale: NDArray[np.float64]) -> dict[str, Any]:
    """The box around a rectangle, which may be turned by `rotation` about its upper left corner."""
    if "radiusX" in value or not {"x", "y", "width", "height"} <= value.keys():
        return {}
    corner = np.array([value["x"], value["y"]], float) * scale
    extent = np.array([value["width"], value["height"]], float) * scale
    around = _turned(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * extent, value) + corner
    left, top = around.min(axis=0).tolist()
    return {"bbox": [left, top, *np.ptp(around, axis=0).tolist()]}


def _turned(points: FloatArray, value: dict[str, Any]) -> FloatArray:
    """Points [N, 2] turned by a region's `rotation` degrees in pixels, clockwise."""
    angle = np.deg2rad(float(value.get("rotation") or 0))
    x, y = points.T
    return np.stack(
        [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1
    )


def _ellipse(value: dict[str, Any], scale: NDArray[np.float64]) -> FloatArray:
    """Its outline [N, 2]."""
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    radii = np.array([value["radiusX"], value["radiusY"]], float) * scale
    middle = np.array([value["x"], value["y"]], float) * scale
    return _turned(np.stack([np.cos(turn), np.sin(turn)], axis=1) * radii, value) + middle


def _painted(rle: object, size: Size) -> NDArray[np.uint8]:
    """The mask, uint8 [H, W] of {0, 1}, in Label Studio's run lengths.

    Bits: 32 for how many values there are, 5 for a value's bits less one, four times 4 for the bits
    of a length less one; then runs, each 1 for one value repeated or 0 for values one by one, 2 for
    which of the four kinds of length it has, and the length less one (thi.ng's rle-pack). Raises
    ValueError for anything else.
    """
    height, width = size
    if height * width > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"a picture of {width} x {height} pixels")
    bits = np.unpackbits(np.array(rle, dtype=np.uint8))
    text, place = (bits + ord("0")).tobytes().decode(), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise ValueError("run lengths that break off")
        return int(text[place - count : place], 2)

    total, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width or value_bits != 8:
        raise ValueError(f"{total} values for {width} x {height} pixels of RGBA")
    painted, done = np.zeros(height * width, np.uint8), 0
    while done < total:
        repeated = read(1)
        end = done + 1 + read(length_bits[read(2)])
        if end > total:
            raise ValueError("run lengths for more pixels than there are")
        pixels = slice(done // 4, end // 4)  # whose alpha value is among these
        if repeated:
            painted[pixels] = read(8) > 0
        else:
            start = place
            place += 8 * (end - done) - 8
            read(8)  # raises unless the last one is complete
            painted[pixels] = np.packbits(bits[start:place])[(3 - done) % 4 :: 4] > 0
        done = end
    return painted.reshape(height, width)
