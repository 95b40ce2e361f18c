"""What readers of annotation tools return: pictures with outlines by label; and helpers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from trainer.data.arrays import FloatArray, PixelArray, Size
from trainer.data.images import LONGEST_SIDE, load_whole
from trainer.data.polygons import IGNORE, TARGET, Polygon

TARGET_SHAPE, IGNORED_SHAPE = "target", "ignore"
# What is allowed, and the fix, where no coordinate of an outline is above 1.
IN_PIXELS = ("pixels of the picture; all within the first one look like fractions",
             "multiply x by the picture's width and y by its height")  # fmt: skip
_NUMBERS = LONGEST_SIDE + 1  # that a coordinate may be
_LABELS = (TARGET, TARGET_SHAPE), (IGNORE, IGNORED_SHAPE)  # by the values of a label map


@dataclass(frozen=True)
class Drawing:
    """A picture and, for each label, the polygons that answer a question about it, in JSON.

    `name` is the picture's name in the annotations, with forward slashes; `notes` is their file.
    The polygons are labelled "target" and "ignore", in pixels of the upright picture.
    """

    name: str
    picture: Path
    notes: Path
    outlined: dict[str, str]  # lists of ReasonSeg's shapes, from `outlined_as_json`
    sound: bool = True  # whether it has no findings
    split: str | None = None  # of the source's own, if it says one


def means_ignore(label: str) -> bool:
    """Whether a label means "ignore", in any spelling of LabelMe's users, such as `__ignore__`."""
    return label.strip("_ ").lower() == IGNORED_SHAPE


def orientation_of(image: Image.Image) -> int:
    """A picture's EXIF orientation, after decoding it as a check; 1 is upright."""
    given = image.getexif().get(ExifTags.Base.Orientation, 1)
    load_whole(image)
    return given if given in range(2, 9) else 1


def possible_frames(annotated: object, upright: Size, orientation: int) -> list[str]:
    """The possible frames, "upright" and "stored", of outlines annotated at a size [H, W].

    Both are possible for a picture that is upside down, mirrored or square.
    """
    stored = upright[::-1] if orientation >= 5 else upright
    sizes = {"upright": upright} if orientation == 1 else {"upright": upright, "stored": stored}
    return [frame for frame, size in sizes.items() if annotated == size]


def json_files(folder: Path) -> list[Path]:
    """Every JSON file in a folder and its subfolders, sorted, without hidden ones."""
    return [path for path in visible(folder) if path.suffix.lower() == ".json"]


def visible(folder: Path) -> list[Path]:
    """What is in a folder and its subfolders, sorted, without hidden files and folders."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def name_below(picture: Path, root: Path) -> str:
    """The name of a picture in `root`: its path from there, with forward slashes."""
    return os.path.relpath(picture, root).replace(os.sep, "/")


def outlines(
    mask: NDArray[np.bool_] | NDArray[np.uint8], left: int = 0, top: int = 0
) -> list[PixelArray]:
    """Outlines [N, 2] that, each painted by `paint_mask`, cover exactly this mask [H, W].

    The mask may be a part of the picture that begins at (left, top). ReasonSeg has no holes, so a
    piece with a hole is cut in two through it, until none is left.
    """
    found: list[PixelArray] = []
    todo = [(mask.view(np.uint8), left, top)]  # with the place of their top left corner
    while todo:
        piece, left, top = todo.pop()
        contours, tree = cv2.findContours(
            piece, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
        )
        parts: PixelArray | None = None
        for index, contour in enumerate(contours):
            _, _, first_hole, parent = tree[0][index].tolist()
            if parent >= 0:
                continue  # a hole: handled with the piece around it
            points = contour[:, 0]
            if first_hole < 0:
                # A dot or a line gets three points as well, which readers require.
                found.append(points if len(points) > 2 else np.resize(points, (3, 2)))
                continue
            if parts is None:
                parts = cv2.connectedComponents(piece, connectivity=8)[1]
            points = points - (left, top)
            x, y, width, height = cv2.boundingRect(points)
            holes = [
                c[:, 0, 1] - top - y
                for c, t in zip(contours, tree[0], strict=True)
                if t[3] == index
            ]
            # Through the hole in the middle, so that many holes need few cuts.
            hole = min(holes, key=lambda rows: abs(float(rows.mean()) - height / 2))
            cut = int(hole.min() + hole.max() + 1) // 2
            part = parts[y : y + height, x : x + width] == parts[points[0][1], points[0][0]]
            for rows, start in ((part[:cut], 0), (part[cut:], cut)):
                todo.append((rows.view(np.uint8), left + x, top + y + start))
    return found


def trace_regions(regions: NDArray[np.uint8], left: int = 0, top: int = 0) -> tuple[Polygon, ...]:
    """Polygons of a label map [H, W] of {0 background, 1 target, 255 ignore}.

    They do not overlap, so they can be painted in any order. The map may be a part of the picture
    that begins at (left, top).
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(regions))
    inner = regions[y : y + height, x : x + width]
    return tuple(
        Polygon(label, points)
        for value, label in _LABELS
        if value in inner
        for points in outlines(inner == value, left + x, top + y)
    )


def trace_mask(mask: NDArray[np.uint8], left: int, top: int) -> tuple[Polygon, ...]:
    """The same of a target alone, in its bounding box: a label map of {0, 1} without a margin."""
    return tuple(Polygon(TARGET_SHAPE, points) for points in outlines(mask, left, top))


def outlined_as_json(outlined: Mapping[str, Sequence[Polygon]]) -> dict[str, str]:
    """A list of ReasonSeg's shapes in JSON for each label."""
    points = iter(_listed([one.points for polygons in outlined.values() for one in polygons]))
    found = {}
    for label, polygons in outlined.items():
        shapes = [f'{{"label":"{one.label}","points":{next(points)}}}' for one in polygons]
        found[label] = f"[{','.join(shapes)}]"
    return found


def _listed(outlined: Sequence[FloatArray | PixelArray]) -> list[str]:
    """Each outline's points in JSON."""
    if not outlined or any(points.dtype.kind != "i" for points in outlined):
        return [msgspec.json.encode(points.tolist()).decode() for points in outlined]
    # From a table of all whole numbers that occur: less than half of the time.
    numbers: NDArray[np.integer[Any]] = np.concatenate(outlined)
    numbers[:, 1] += _NUMBERS
    numbers[np.cumsum([len(points) for points in outlined]) - 1, 1] += _NUMBERS
    listed = _spellings().take(numbers).tobytes().translate(None, b"\0").decode()
    return [f"[{points}]" for points in listed.split("\n")[:-1]]


@lru_cache
def _spellings() -> NDArray[np.uint64]:
    """All whole numbers of pixels as x, as y and as an outline's last y, in JSON: 8 bytes each."""
    spelled = (b"[%d,", b"%d],", b"%d]\n")
    return np.array([one % n for one in spelled for n in range(_NUMBERS)], "S8").view("u8")
