"""Reads a user's COCO annotations as drawings: masks traced pixel by pixel, upright.

All instances of a category on a picture are its target. A crowd (`iscrowd`) is ignored for its
category, since its members have no outlines of their own; an instance on top of it remains a
target. A region labelled "ignore" is ignored for every category on its picture, as with LabelMe.
"""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from trainer.data.arrays import Size
from trainer.data.findings import Finding, Report
from trainer.data.formats.coco import CocoEntry, CocoImage, CocoMask, read_mask
from trainer.data.formats.coco_document import value_of
from trainer.data.formats.coco_masks import PaintedBox, painted_boxes
from trainer.data.images import open_image
from trainer.data.importing.coco_conventions import (
    TO_UPRIGHT,
    PixelTransform,
    filled,
    frame_of,
    is_crowd,
    is_drawn_upright,
    stretched,
    to_upright,
)
from trainer.data.importing.coco_file import read_listed
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.foreign import is_other
from trainer.data.importing.labels import label_key
from trainer.data.importing.outlines import (
    IN_PIXELS,
    Drawing,
    means_ignore,
    name_below,
    orientation_of,
    outlined_as_json,
    trace_mask,
    trace_regions,
)
from trainer.data.importing.yolo_folder import YoloFolder
from trainer.data.picture_paths import PictureSearch
from trainer.data.polygons import IGNORE, TARGET, Polygon
from trainer.data.threads import in_processes
from trainer.reporter import Progress


def read_drawings(
    path: Path,
    search: PictureSearch,
    findings: list[Finding],
    conventions: Conventions | None = None,
    progress: Progress | None = None,
    root: Path | None = None,
    yolo: YoloFolder | None = None,
) -> Iterator[Drawing]:
    """The pictures with valid annotations; a finding for every error.

    The names of those in `root` start there. `yolo`: read its labels, and no file.
    """
    report, progress = Report(path, findings), progress or _silent
    if yolo is None and is_other(report):
        return
    conventions = conventions or Conventions()
    notes = read_listed(report, search, conventions, progress, yolo)
    before, ranks = len(findings), list[int]()  # of findings about annotations, in their order
    marks: dict[int, list[tuple[int, CocoEntry]]] = {number: [] for number in notes.images}
    for rank, entry in enumerate(notes.entries):
        ranks += [rank] * (len(findings) - before - len(ranks))
        if entry.crowd and not is_crowd(entry, conventions):
            entry = entry._replace(crowd=False)
        marks[entry.image].append((rank, entry))
    ranks += [sum(map(len, marks.values()))] * (len(findings) - before - len(ranks))
    search.register(image.file_name for image in notes.images.values())
    for number in [number for number, those in marks.items() if not those]:
        conventions.leave_out(str(notes.images[number].file_name))
        del marks[number]
    total = len(marks)
    entries = (
        _found(path, search, root, notes.images[number], marks.pop(number))
        for number in list(marks)
    )
    draw = partial(_drawn, path, notes.categories, notes.tool, conventions.frame)
    for done, drawn in enumerate(in_processes(draw, entries, total), 1):
        progress("importing pictures", done, total)
        findings += drawn.findings
        if drawn.findings or drawn.outlines:
            conventions.lost.add(drawn.name)
        for rank, finding in drawn.outlines:
            place = bisect(ranks, rank)
            ranks.insert(place, rank)
            findings.insert(before + place, finding)
        for what in drawn.assumed:
            conventions.assume(what)
        if drawn.drawing is not None:
            yield drawn.drawing


def _silent(what: str, done: int, total: int) -> None:
    """No progress is asked for."""


@dataclass(frozen=True)
class _Entry:
    """A picture to draw: its file and the folder that its name starts from, if it was found."""

    image: CocoImage
    located: tuple[Path, Path] | None
    marks: list[tuple[int, CocoEntry]]  # with their places among all annotations
    findings: list[Finding]


@dataclass(frozen=True)
class _Drawn:
    """The result of an entry: a drawing if it is valid, the findings, and the assumptions.

    `name`: the picture's, as recorded. `outlines`: the findings about single outlines, each with
    its annotation's place.
    """

    name: object
    drawing: Drawing | None
    findings: list[Finding]
    outlines: list[tuple[int, Finding]]
    assumed: list[str]


def _found(
    path: Path, search: PictureSearch, root: Path | None, image: CocoImage,
    marks: list[tuple[int, CocoEntry]],
) -> _Entry:  # fmt: skip
    findings: list[Finding] = []
    located = search.find(Report(path, findings), f"{image.place}.file_name", image.file_name)
    if located and root and located[0].is_relative_to(os.path.abspath(root)):
        located = located[0], Path(os.path.abspath(root))
    return _Entry(image, located, marks, findings)


def _drawn(
    path: Path, categories: dict[int, str], tool: str, frame: str | None, entry: _Entry
) -> _Drawn:
    """The drawing of one picture; it may be made in another process."""
    report, conventions = Report(path, entry.findings), Conventions(frame=frame)
    masks, unusable, outlines = _masks(path, entry)
    drawing = _drawing(report, entry, masks, unusable, categories, tool, conventions)
    assumed = list(conventions.assumed)
    return _Drawn(entry.image.file_name, drawing, report.findings, outlines, assumed)


def _masks(
    path: Path, entry: _Entry
) -> tuple[list[CocoMask], list[CocoMask], list[tuple[int, Finding]]]:
    """The usable masks of a picture, the others, and why: findings, each with its place."""
    masks: list[CocoMask] = []
    unusable: list[CocoMask] = []
    report, outlines = Report(path), list[tuple[int, Finding]]()
    for rank, one in entry.marks:
        mask, usable = read_mask(report, one, entry.image.size)
        if usable and _in_fractions(mask):
            report.add(one.place, value_of(one.segmentation), *IN_PIXELS)
            usable = False
        (masks if usable else unusable).append(mask)
        outlines += [(rank, finding) for finding in report.findings[len(outlines) :]]
    return masks, unusable, outlines


def _in_fractions(mask: CocoMask) -> bool:
    """Whether a mask is polygons that lie in the picture's first pixel."""
    return bool(mask.parts) and all(
        not isinstance(part, dict) and part[0] <= 1 and np.abs(part).max() <= 1
        for part in mask.parts
    )


def _drawing(
    report: Report, entry: _Entry, masks: list[CocoMask], unusable: list[CocoMask],
    categories: dict[int, str], tool: str, conventions: Conventions,
) -> Drawing | None:  # fmt: skip
    if entry.located is None:
        return None
    image, (picture, pictures) = entry.image, entry.located
    opened = open_image(
        Report(picture, report.findings, f"{report.path}: {image.place}"), orientation_of
    )
    if opened is None:
        return None
    upright, orientation = opened
    those, turn = [filled(mask, image, tool) for mask in (*masks, *unusable)], None
    broken = {one.place for one in unusable}
    if orientation != 1 and is_drawn_upright(tool, image, upright, conventions):
        for index, mask in enumerate(those):
            moved = stretched(report, mask, image.size, upright)
            if moved is None:
                broken.add(mask.place)  # and where it is remains unknown
            those[index] = moved or mask._replace(parts=(), bbox=None)
        image, turn = replace(image, size=upright), TO_UPRIGHT[1]
    frame = frame_of(tool, orientation, conventions)
    turn = turn or to_upright(report, image, frame, upright, orientation)
    if turn is None:
        return None
    outlined = _outlined(report, those, broken, categories, image, turn)
    name = name_below(picture, pictures)
    return Drawing(name, picture, report.path, outlined_as_json(outlined))


def _outlined(
    report: Report, marks: list[CocoMask], unusable: set[str], categories: dict[int, str],
    image: CocoImage, turn: PixelTransform,
) -> dict[str, tuple[Polygon, ...]]:  # fmt: skip
    """The traced target and ignored regions of each category that has an instance."""
    together: dict[str, list[CocoMask]] = {}
    spelled: dict[str, str] = {}
    ignored: list[CocoMask] = []
    for one in marks:
        label = categories[one.category].replace(":", " ")
        label = spelled.setdefault(label_key(label), label)
        (ignored if means_ignore(label) else together.setdefault(label, [])).append(one)
    outlined = {}
    sound = [one for those in together.values() for one in those] + ignored
    boxes = painted_boxes([one.parts for one in sound], image.size)
    painted = {one.place: box for one, box in zip(sound, boxes, strict=True)}

    def order(one: CocoMask) -> tuple[bool, int]:
        """Crowds first; if some regions are ignored, larger ones before smaller ones."""
        return not one.crowd, -painted[one.place].area if ignored else 0

    for label, those in together.items():  # one after the other: a mask has the picture's size
        all_known = True
        layers: list[tuple[PaintedBox, int | None]] = []
        marked = [(one, IGNORE if one.crowd else TARGET) for one in those]
        marked += [(one, IGNORE) for one in ignored]
        for one, value in sorted(marked, key=lambda pair: order(pair[0])):
            box = painted[one.place]
            if len(box.runs):
                layers.append((box, value))
                continue
            if one.place not in unusable:  # not a finding already
                allowed = f"some part within width {image.size[1]}, height {image.size[0]}"
                fix = "export the annotation again or take it out"
                report.add(one.place, "no pixel of the picture", allowed, fix)
            # If it is left out, what its box holds is unknown.
            all_known &= one.box is not None
            (held,) = painted_boxes([one.box or ()], image.size)
            layers.append((held, None))
        traced = _traced(layers, image.size, turn) if all_known else ()
        if traced:
            outlined[label] = traced
    return outlined


def _traced(
    layers: list[tuple[PaintedBox, int | None]], size: Size, turn: PixelTransform
) -> tuple[Polygon, ...]:
    """The regions of masks painted one over the other, each with its value; none without a target.

    Those without a value are ignored where nothing is painted yet.
    """
    upright = turn is TO_UPRIGHT[1]
    if upright and [value for _, value in layers] == [TARGET]:
        ((box, _),) = layers
        return trace_mask(box.covered(), box.columns.start, box.rows.start)
    rows, columns = _hull(layers) if upright else (slice(0, size[0]), slice(0, size[1]))
    regions = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    for box, value in layers:
        inner = regions[_moved(box.rows, rows.start), _moved(box.columns, columns.start)]
        covered = box.covered().view(bool)
        if value is None:
            inner[covered & (inner == 0)] = IGNORE
        else:
            np.copyto(inner, value, where=covered)
    return trace_regions(turn(regions), columns.start, rows.start) if TARGET in regions else ()


def _hull(layers: list[tuple[PaintedBox, int | None]]) -> tuple[slice, slice]:
    """The rows and columns that contain all masks."""
    sides = [(box.rows, box.columns) for box, _ in layers if len(box.runs)]
    if not sides:
        return slice(0, 0), slice(0, 0)
    rows, columns = zip(*sides, strict=True)
    return _around(rows), _around(columns)


def _around(spans: Sequence[slice]) -> slice:
    return slice(min(one.start for one in spans), max(one.stop for one in spans))


def _moved(span: slice, start: int) -> slice:
    """A span in an array that begins at `start`."""
    return slice(max(span.start - start, 0), max(span.stop - start, 0))
