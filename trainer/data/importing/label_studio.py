"""Reads Label Studio's JSON, the only export that keeps brush masks exactly, with their holes.

It is a list of tasks. A region's numbers are percentages of the picture as the annotator saw it; a
brush mask is run lengths of RGBA, whose alpha channel is the mask.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from profiles.files import reason
from trainer.data.arrays import FloatArray, Size
from trainer.data.findings import Report
from trainer.data.formats.coco import PLACE

TASKS = "Label Studio's tasks"  # as if it were COCO's info.contributor
_ELLIPSE_POINTS = 120
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_FIX = "correct it in Label Studio and export again, or take it out"


def as_coco(report: Report, tasks: list[Any]) -> dict[str, Any]:
    """The tasks as a COCO document, each entry with its place; a finding for every error."""
    images: list[dict[Any, Any]] = []
    notes: list[dict[Any, Any]] = []
    numbers: dict[str, int] = {}
    for number, task in enumerate(tasks):
        place = f"tasks[{number}]"
        fields = task if isinstance(task, dict) else {}
        given = fields.get("annotations")
        if not isinstance(given, list):
            allowed = "a task with its annotations, as the export JSON has (not JSON-MIN)"
            report.add(place, task, allowed, "export as JSON from Label Studio")
            continue
        kept = [one for one in given if isinstance(one, dict) and not one.get("was_cancelled")]
        if len(kept) > 1:
            fix = "keep one of them in Label Studio: import cannot know whose outlines are right"
            report.add(f"{place}.annotations", f"{len(kept)} of one picture", "one", fix)
            continue
        result = kept[0].get("result") if kept else []
        regions = [one for one in result if _labels(one)] if isinstance(result, list) else []
        size = _size(report, place, regions)
        if regions and size is None:
            continue
        height, width = size or (None, None)
        images.append({PLACE: place, "id": number, "file_name": _picture(fields.get("data")),
                       "height": height, "width": width})  # fmt: skip
        for index, region in enumerate(regions):
            shape = _shape(region["value"], size) if size else {}
            for label in _labels(region):
                category = numbers.setdefault(label, len(numbers))
                notes.append({PLACE: f"{place}.result[{index}]", "id": len(notes), **shape,
                              "image_id": number, "category_id": category})  # fmt: skip
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": notes, "categories": categories,
            "info": {"contributor": TASKS}}  # fmt: skip


def _size(report: Report, place: str, regions: list[dict[str, Any]]) -> Size | None:
    """The picture's size according to all regions; None without any, or with a finding added."""
    sizes = [(one.get("original_height"), one.get("original_width")) for one in regions]
    if not sizes:
        return None
    height, width = sizes[0]
    same = all(size == sizes[0] for size in sizes)
    if same and type(height) is int and type(width) is int and min(height, width) > 0:
        return height, width
    got = list(dict.fromkeys(map(str, sizes)))
    allowed = "two whole numbers above 0, the same in all regions"
    report.add(f"{place}: original_height, original_width", got, allowed, _FIX)
    return None


def _labels(region: object) -> list[str]:
    """The labels of a region; empty for choices, texts and regions without a label."""
    if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
        return []
    listed = region["value"].get(str(region.get("type")), region["value"].get("labels"))
    shaped = region["value"].keys() & {"points", "rle", "x"}
    labels = listed if isinstance(listed, list) and shaped else []
    return [label for label in labels if isinstance(label, str)]


def _picture(data: object) -> str | None:
    """The address of a task's picture: the text with a picture's suffix, or else the only text."""
    texts = [one for one in data.values() if isinstance(one, str)] if isinstance(data, dict) else []
    named = [one for one in texts if _suffix(one) in _PICTURES]
    return next(iter(named or texts), None)


def _suffix(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return PurePosixPath(parts.query or parts.path).suffix.lower()


def _shape(value: dict[str, Any], size: Size) -> dict[str, Any]:
    """COCO's segmentation of a region, with bbox for a rectangle; or the error as text."""
    height, width = size
    scale = np.array([width, height]) / 100
    try:
        if "rle" in value:
            painted = coco_mask.encode(np.asfortranarray(_painted(value["rle"], size)))
            painted["counts"] = painted["counts"].decode()
            return {"segmentation": painted}
        if "points" in value:
            return {"segmentation": [(np.array(value["points"], float) * scale).ravel().tolist()]}
        if "radiusX" in value:
            return {"segmentation": [(_ellipse(value, scale)).ravel().tolist()]}
        corner = np.array([value["x"], value["y"]], float) * scale
        extent = np.array([value["width"], value["height"]], float) * scale
        return {"segmentation": [], "bbox": [*corner.tolist(), *extent.tolist()]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return {"segmentation": reason(error)}


def _ellipse(value: dict[str, Any], scale: NDArray[np.float64]) -> FloatArray:
    """Its outline [N, 2]; it is turned by `rotation` degrees in pixels, clockwise."""
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    radii = np.array([value["radiusX"], value["radiusY"]], float) * scale
    x, y = radii[:, None] * np.stack([np.cos(turn), np.sin(turn)])
    angle = np.deg2rad(float(value.get("rotation") or 0))
    turned = np.stack(
        [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)]
    )
    middle = np.array([value["x"], value["y"]], float) * scale
    return turned.T + middle


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
