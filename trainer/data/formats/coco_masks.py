"""COCO's masks: polygons and run lengths, checked and painted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from profiles.text import brief
from trainer.data.arrays import FloatArray, Size
from trainer.data.findings import Report

# A polygon [2N] of x, y, or run lengths. Checked: where counts and size differ, pycocotools reads
# arbitrary memory. Arrays, since lists of a million polygons would take gigabytes.
Part: TypeAlias = "FloatArray | dict[str, Any]"
LARGEST_COORDINATE = 1e6  # pycocotools walks along every edge, pixel by pixel
# Including edges outside of the picture and back and forth; drawn outlines are far shorter.
_LONGEST_OUTLINE = 100  # times the picture's height and width together
_NUMBERS = frozenset((int, float))
FIX = "correct the annotation or take it out"


def painted(parts: Sequence[Part], height: int, width: int) -> NDArray[np.uint8]:
    """All parts as one mask uint8 [height, width] of {0, 1}."""
    (encoded,) = _merged([parts], height, width)
    if encoded is None:
        return np.zeros((height, width), np.uint8)
    mask: NDArray[np.uint8] = coco_mask.decode(encoded)
    return mask


class Refused(NamedTuple):
    """A segmentation that another tool's reader understood, but refuses: parts of its finding."""

    got: str
    allowed: str
    fix: str


class PaintedBox(NamedTuple):
    """A mask as its bounding rows and columns, and its runs within these columns.

    `runs` are lengths of alternating 0 and 1 down the whole columns, one after the other. Both are
    empty for a mask that covers nothing.
    """

    rows: slice = slice(0, 0)
    columns: slice = slice(0, 0)
    runs: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def area(self) -> int:
        """Covered pixels."""
        return int(self.runs[1::2].sum())

    def covered(self) -> NDArray[np.uint8]:
        """The mask within its rows and columns, uint8 [h, w] of {0, 1}."""
        if not len(self.runs):
            return np.zeros((0, 0), np.uint8)
        bits = np.zeros(len(self.runs), np.uint8)
        bits[1::2] = 1
        across = self.columns.stop - self.columns.start
        columns = bits.repeat(self.runs).reshape(across, -1)
        found: NDArray[np.uint8] = cv2.transpose(columns[:, self.rows])
        return found


def painted_boxes(masks: Sequence[Sequence[Part]], size: Size) -> list[PaintedBox]:
    """Each mask, painted from all of its parts.

    Not decoded in full: that takes thirty times as long as encoding a mask. One call for all masks
    of a picture takes hardly longer than for one.
    """
    encoded = _merged(masks, *size)
    known = [one for one in encoded if one is not None]
    if not known:
        return [PaintedBox()] * len(masks)
    boxes = iter(coco_mask.toBbox(known).astype(int).tolist())
    lengths = iter(_lengths([one["counts"] for one in known]))
    return [
        PaintedBox() if one is None else _cropped(next(lengths), size, *next(boxes))
        for one in encoded
    ]


def _cropped(
    lengths: NDArray[np.int64], size: Size, left: int, top: int, across: int, down: int
) -> PaintedBox:
    """A mask's runs down the whole picture, as those of its columns; `lengths` is changed."""
    if not across:
        return PaintedBox()
    height, width = size
    lengths[0] -= left * height
    if len(lengths) % 2:  # it ends with a run of 0
        lengths[-1] -= (width - left - across) * height
    return PaintedBox(slice(top, top + down), slice(left, left + across), lengths)


def _merged(
    masks: Sequence[Sequence[Part]], height: int, width: int
) -> list[dict[str, Any] | None]:
    """pycocotools' encoding of all parts of each mask as one; None for a mask without any."""
    outlines = [part for parts in masks for part in parts if isinstance(part, np.ndarray)]
    encoded = iter(coco_mask.frPyObjects(outlines, height, width) if outlines else ())
    found: list[dict[str, Any] | None] = []
    for parts in masks:
        runs = [
            next(encoded) if isinstance(part, np.ndarray) else _run_lengths(part, height, width)
            for part in parts
        ]
        alone = len(runs) == 1 and isinstance(parts[0], np.ndarray)
        found.append(runs[0] if alone else coco_mask.merge(runs) if runs else None)
    return found


def _run_lengths(part: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """pycocotools' encoding of given run lengths."""
    return coco_mask.frPyObjects(part, height, width) if isinstance(part["counts"], list) else part


def read_parts(report: Report, what: str, value: object, size: Size) -> tuple[Part, ...] | None:
    """The checked parts of a segmentation; None with a finding added."""
    if isinstance(value, Refused):
        report.add(what, *value)
        return None
    parts = [value] if isinstance(value, dict) or _extent(value) else value
    if not isinstance(parts, list):
        report.add(what, value, "polygons or run lengths", FIX)
        return None
    checked: list[Part] = []
    for part in parts:
        extent = _extent(part)
        if extent and (outline := _short_enough(part, *extent, size)) is not None:
            checked.append(outline)
        elif (runs := _checked_runs(part, size)) is not None:
            checked.append(runs)
        elif isinstance(part, dict):
            height, width = size
            allowed = (
                f"run lengths with size [{height}, {width}], the picture's [height, width] in this "
                f"file, and with counts that add up to its {height * width} pixels"
            )
            got = f"size {part.get('size')}, counts {brief(part.get('counts'), 50)}"
            report.add(what, got, allowed, FIX)
            return None
        else:
            report.add(what, part, _allowed(part, size), FIX)
            return None
    return tuple(checked)


def _allowed(part: object, size: Size) -> str:
    """What a part may be that is neither a sound polygon nor run lengths."""
    numbers = part if isinstance(part, list) and _NUMBERS.issuperset(map(type, part)) else []
    if len(numbers) < 6 or len(numbers) % 2:
        return "a polygon of 3 points or more, as one list [x1, y1, x2, y2, …], or run lengths"
    if _extent(part) is None:
        return f"a polygon whose numbers are at most {LARGEST_COORDINATE:.0f} in size"
    return (
        f"a polygon of pixels, whose edges together are at most {_LONGEST_OUTLINE * sum(size)} "
        f"long; the picture has height {size[0]}, width {size[1]}"
    )


def _extent(part: object) -> tuple[float, float] | None:
    """The least and the largest number of a polygon; None for anything else."""
    # pycocotools reads four numbers as a box.
    if not (isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0):
        return None
    if not _NUMBERS.issuperset(map(type, part)):
        return None
    least, largest = min(part), max(part)
    # Compared without conversion: JSON's integers may not fit a float.
    within = least >= -LARGEST_COORDINATE and largest <= LARGEST_COORDINATE
    # The least and the largest pass over NaN.
    return (least, largest) if within and not math.isnan(sum(part)) else None


def _short_enough(part: list[float], least: float, largest: float, size: Size) -> FloatArray | None:
    """The polygon [2N]; None if walking along its edges would take seconds and gigabytes."""
    points, most = np.array(part, dtype=np.float64), _LONGEST_OUTLINE * sum(size)
    if len(part) * (largest - least) <= most:  # no edge is longer
        return points
    corners = points.reshape(-1, 2)
    steps = np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1).sum()
    return points if steps <= most else None


def _checked_runs(part: object, size: Size) -> dict[str, Any] | None:
    """Run lengths that cover a picture of that size to the pixel; None if they do not."""
    if not isinstance(part, dict) or part.get("size") != list(size):
        return None
    counts = part.get("counts")
    if isinstance(counts, str) and counts.isascii():
        lengths = _unpacked(counts.encode())
    elif isinstance(counts, list) and all(type(n) is int for n in counts):
        lengths = counts
    else:
        return None
    if not lengths or min(lengths) < 0 or sum(lengths) != size[0] * size[1]:
        return None
    return part if all(lengths[1:]) else part | {"counts": _joined(lengths)}


def _joined(lengths: list[int]) -> list[int]:
    """The same without runs of no length, at which pycocotools' merge would end."""
    found = [0]
    for index, length in enumerate(lengths):
        if length and (len(found) - index) % 2:
            found[-1] += length
        elif length:
            found.append(length)
    return found


def _lengths(texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
    """The lengths in several valid texts of COCO, as `_unpacked` returns them, vectorised."""
    digits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    (last,) = (digits < 32).nonzero()
    values = (digits[last] & 31 ^ 16).astype(np.int64) - 16  # the highest bits, with the sign
    longer, back = np.arange(len(last)), 1
    while len(longer := longer[digits[last[longer] - back] >= 32]):
        values[longer] = (values[longer] << 5) + (digits[last[longer] - back] & 31)
        back += 1
    found, start = [], 0
    for end in last.searchsorted(list(accumulate(map(len, texts)))).tolist():
        for those in (values[start + 1 : end : 2], values[start + 2 : end : 2]):
            np.add.accumulate(those, out=those)
        found.append(values[start:end])
        start = end
    return found


def _unpacked(counts: bytes) -> list[int]:
    """The lengths in COCO's text: five bits a character, the lowest first.

    From the fourth on, each length is stored as the difference to the last but one. Empty for a
    text that is cut off or that pycocotools would not have written.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        digit = character - 48
        if not 0 <= digit < 64 or shift > 30:
            return []
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return [] if shift else lengths
