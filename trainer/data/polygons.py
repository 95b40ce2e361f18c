"""Paints polygons into masks, with a limit on the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from trainer.data.arrays import ByteArray, FloatArray, PixelArray, Size
from trainer.data.findings import Report
from trainer.ignored import IGNORE_PIXEL

TARGET, IGNORE = 1, IGNORE_PIXEL
# Far beyond any picture that Pillow opens, and safe in OpenCV's fixed-point arithmetic.
_LARGEST_COORDINATE = 1_000_000
# Every visit to a sample paints its mask again, and OpenCV takes minutes over an outline that
# crosses itself everywhere. In nanoseconds, roughly.
_MOST_PAINTING = 1_000_000_000


@dataclass(frozen=True)
class Polygon:
    """A closed outline; `points` is [N, 2] (x, y) in pixels, N >= 3, not to be changed.

    Whole numbers are pixels of a picture.
    """

    label: str
    points: FloatArray | PixelArray


def paint_mask(polygons: Sequence[Polygon], height: int, width: int) -> ByteArray:
    """Paint the ground truth uint8 [height, width]: 0 background, 1 target, 255 ignore.

    Polygons of larger painted area come first, so that small ones stay visible. Of equal areas the
    one listed first in the file ends on top, as with upstream's reversed sort.
    Coordinates are truncated towards zero; parts outside the picture are cut off.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    areas = [painted_area(polygon, height, width) for polygon in polygons]
    for index in np.argsort(areas, kind="stable")[::-1]:
        polygon = polygons[index]
        _paint(mask, polygon, IGNORE if "ignore" in polygon.label.lower() else TARGET)
    return mask


def painted_area(polygon: Polygon, height: int, width: int) -> int:
    """Pixels that the polygon covers by itself."""
    # On a canvas of its bounding box only, since there may be thousands of polygons.
    points = polygon.points.astype(np.int32)
    start = points.min(axis=0).clip(0, (width, height))
    columns, rows = (points.max(axis=0) + 1).clip(0, (width, height)) - start
    if min(rows, columns) <= 0:
        return 0
    moved = Polygon(polygon.label, polygon.points.astype(np.int32) - start)
    return int(np.count_nonzero(_paint(np.zeros((rows, columns), dtype=np.uint8), moved, 1)))


def read_points(report: Report, what: str, value: object, least: int = 3) -> FloatArray | None:
    """float64 [N, 2] of a list of pairs, N >= least; None with a finding added."""
    fix = "redraw the polygon or take the shape out"
    # OpenCV would paint a dot or a line for fewer points, which nobody means as an answer.
    if not isinstance(value, list) or len(value) < least:
        report.add(what, value, f"a list of {least} or more points [x, y]", fix)
        return None
    for number, pair in enumerate(value):
        numeric = isinstance(pair, list) and [type(x) in (int, float) for x in pair] == [True] * 2
        # Compared without conversion: JSON's integers may not fit a float. NaN fails as well.
        if not numeric or not all(abs(x) <= _LARGEST_COORDINATE for x in pair):
            allowed = f"two finite numbers [x, y], at most {_LARGEST_COORDINATE} in size"
            report.add(f"{what}[{number}]", pair, allowed, fix)
            return None
    return np.array(value, dtype=np.float64)


@dataclass
class Budget:
    """How much work is left for painting the polygons of one picture."""

    left: int = _MOST_PAINTING

    def covers(self, report: Report, what: str, points: FloatArray, size: Size) -> bool:
        """Whether one more polygon [N, 2] can be painted; if not, a finding is added."""
        self.left -= _effort(points, size)
        if self.left < 0:
            allowed = "outlines that are painted in a few seconds, all of a picture together"
            fix = "redraw what crosses itself again and again, or take shapes out"
            report.add(what, f"{len(points)} points, too much to paint", allowed, fix)
        return self.left >= 0


def _effort(points: FloatArray, size: Size) -> int:
    """Work to paint a polygon, in nanoseconds: its box, the rows of its edges, and crossings.

    Crossings are bounded by the pairs of edges in the row that most edges pass.
    """
    height, width = size
    box = (points.max(0).clip(0, (width, height)) - points.min(0).clip(0, (width, height))).prod()
    y = np.trunc(points[:, 1]).clip(None, height)
    edges = np.sort([y, np.roll(y, -1)], axis=0)
    edges = edges[:, edges[0] < edges[1]]  # OpenCV skips horizontal ones
    rows = (edges[1] - edges[0]).sum()
    # A sample of the rows is enough: there may be a million.
    top, scale = y.min(), 4096 / max(4096, np.ptp(y))
    passing = np.zeros(4098, int)
    np.add.at(passing, ((edges[0] - top) * scale).astype(int), 1)
    np.add.at(passing, ((edges[1] - top) * scale).astype(int), -1)
    return int(box / 2 + 5 * rows) + 250 * int(passing.cumsum().max()) ** 2


def _paint(mask: ByteArray, polygon: Polygon, value: int) -> ByteArray:
    """Paint a polygon with its outline into mask uint8 [H, W], in place."""
    points = [polygon.points.astype(np.int32)]
    cv2.polylines(mask, points, True, value, 1)
    cv2.fillPoly(mask, points, value)
    return mask
