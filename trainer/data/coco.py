"""Reads COCO's instance annotations: one JSON of {images, annotations, categories}.

Masks are those that pycocotools makes of them, traced pixel by pixel. All instances of a category
on a picture are its target. A crowd (`iscrowd`) is ignored for its category, since nobody outlined
what is in it one by one; where an instance lies on it, the instance holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pycocotools import mask as coco

from trainer.data.drawing import Drawing, called, picture_inside, traced
from trainer.data.reasonseg import (
    IGNORE,
    TARGET,
    Finding,
    Polygon,
    Report,
    Size,
    load_json,
    open_image,
    read_sentence,
)

Mask: TypeAlias = NDArray[np.bool_]
Turn: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
Named: TypeAlias = tuple[str, dict[str, Any]]  # where it stands in the file, and what it is
_REDRAW = "export the annotation again or take it out"

# What turns stored pixels upright, by EXIF orientation.
_TURNS: dict[int, Turn] = {
    1: lambda mask: mask,
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: mask[::-1, ::-1].T,
    8: np.rot90,
}


def read_coco(path: Path, pictures: Path, findings: list[Finding]) -> Iterator[Drawing]:
    """The pictures whose annotations are sound; a finding for all that is not."""
    report = Report(path, findings)
    notes = load_json(report, dict, "COCO's {images, annotations, categories}")
    if notes is None:
        return
    categories = {
        fields["id"]: name
        for what, fields in _objects(report, notes, "categories")
        if (name := read_sentence(report, f"{what}.name", fields.get("name"))) is not None
    }
    images = _objects(report, notes, "images")
    marks: dict[object, list[Named]] = {fields["id"]: [] for _, fields in images}
    for what, fields in _objects(report, notes, "annotations"):
        for key, known in (("image_id", marks), ("category_id", categories)):
            if not _is_id(fields.get(key)) or fields[key] not in known:
                report.add(f"{what}.{key}", fields.get(key), "an id of this file", _REDRAW)
                break
        else:
            marks[fields["image_id"]].append((what, fields))
    for what, fields in images:
        name = fields.get("file_name")
        picture = picture_inside(report, f"{what}.file_name", name, pictures, pictures)
        if picture is None:
            continue
        opened = open_image(Report(picture, findings), _orientation)
        turn = opened and _turn(report, what, fields, *opened)
        if turn:
            outlined = _outlined(report, marks[fields["id"]], categories, fields, turn)
            yield Drawing(called(picture, pictures), picture, path, outlined)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str)


def _objects(report: Report, notes: dict[str, Any], key: str) -> list[Named]:
    """The objects of a list that have an id, each its own."""
    listed = notes.get(key)
    if not isinstance(listed, list):
        fix = "export the annotations again; of LabelMe's files, name the folder"
        report.add(key, listed, "a list, as in COCO's instances", fix)
        return []
    found: dict[object, Named] = {}
    for index, fields in enumerate(listed):
        what = f"{key}[{index}]"
        given = fields.get("id") if isinstance(fields, dict) else None
        if not _is_id(given) or given in found:
            report.add(f"{what}.id", given, "a number that no other has", "correct the file")
        else:
            found[given] = (what, fields)
    return list(found.values())


def _orientation(image: Image.Image) -> int:
    """Its EXIF orientation, once it is known to be whole; 1 is upright."""
    given = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()
    return given if given in range(2, 9) else 1


def _turn(
    report: Report, what: str, fields: dict[str, Any], upright: Size, orientation: int
) -> Turn | None:
    """What turns a mask of the annotated size upright; None with a finding added.

    COCO's own annotations are in stored pixels, some tools' in upright ones: the size tells which.
    Where it cannot, as for a picture that is upside down, nothing is guessed.
    """
    told = fields.get("height"), fields.get("width")
    stored = upright[::-1] if orientation >= 5 else upright
    if told == upright and (orientation == 1 or stored != upright):
        return _TURNS[1]
    if told == stored and stored != upright:
        return _TURNS[orientation]
    if told == upright:
        allowed = "a size that tells whether masks are of the picture as stored or upright"
        got = f"{told} for a picture with EXIF orientation {orientation}"
        fix = "save the picture without its EXIF orientation, looking as it did when annotated"
    else:
        allowed, got = f"{upright}, the picture's", f"{told}"
        fix = "name the very picture that was annotated"
    report.add(f"{what}.(height, width)", got, allowed, fix)
    return None


def _outlined(
    report: Report,
    marks: list[Named],
    categories: dict[object, str],
    image: dict[str, Any],
    turn: Turn,
) -> dict[str, tuple[Polygon, ...]]:
    """The traced target and ignored regions of each category that has an instance."""
    height, width = int(image["height"]), int(image["width"])  # some tools write 480.0
    sure: dict[str, Mask] = {}
    crowds: dict[str, Mask] = {}
    for what, fields in marks:
        try:
            mask = _decoded(fields.get("segmentation"), height, width)
        except ValueError as error:
            allowed = f"polygons [x1, y1, x2, y2, x3, y3, ...] or run lengths, {height} x {width}"
            report.add(f"{what}.segmentation", str(error), allowed, _REDRAW)
            continue
        label = categories[fields["category_id"]]
        kind = crowds if fields.get("iscrowd") else sure
        kind[label] = kind[label] | mask if label in kind else mask
    outlined = {}
    for label, mask in sure.items():
        regions = np.zeros((height, width), np.uint8)
        if label in crowds:
            regions[crowds[label]] = IGNORE
        regions[mask] = TARGET
        outlined[label] = traced(turn(regions))
    return outlined


def _decoded(segmentation: object, height: int, width: int) -> Mask:
    """The mask [H, W] of polygons or run lengths. ValueError: neither, or nothing inside."""
    if isinstance(segmentation, dict):
        mask = _from_runs(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        parts = coco.frPyObjects(segmentation, height, width)
        mask = coco.decode(coco.merge(parts)).astype(bool)
    else:
        raise ValueError(repr(segmentation))
    if not mask.any():
        raise ValueError("no pixel of the picture")
    return mask


def _check_polygon(polygon: object, height: int, width: int) -> None:
    """ValueError unless it is x and y in turn of three points or more, near the picture.

    Near, because pycocotools walks along outlines step by step, however far they go.
    """
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"polygon {polygon!r}")
    for place, number in enumerate(polygon):
        side = height if place % 2 else width
        if type(number) not in (int, float) or not -side <= number <= 2 * side:
            raise ValueError(f"coordinate {number!r}")


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> Mask:
    """The mask of COCO's run lengths, plain or packed. ValueError unless they fill the picture."""
    size, runs = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"size {size!r}")
    if isinstance(runs, str):
        runs = _unpacked(runs)
    # pycocotools leaves what no run covers uninitialised, so nothing unchecked gets there.
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("run lengths that are no whole numbers from 0 on")
    if sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels")
    packed = coco.frPyObjects({"size": size, "counts": runs}, height, width)
    return coco.decode(packed).astype(bool)


def _unpacked(counts: str) -> list[int]:
    """Run lengths from COCO's text: six bits a character, differences from the third on."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"packed run lengths with {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # the number goes on
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("packed run lengths that break off")
    return runs
