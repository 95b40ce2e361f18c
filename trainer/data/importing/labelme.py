"""Reads a folder of LabelMe's annotations: one JSON per picture, with `imagePath` and `shapes`.

LabelMe shows and measures pictures upright, as ReasonSeg does, so its points need no change.
X-AnyLabeling writes the same format but measures pictures as stored, unless it has turned the file
itself. A shape labelled "ignore" belongs to every label of its picture. `imageData` is not read.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from profiles.text import some
from trainer.data.arrays import FloatArray, Size
from trainer.data.findings import Finding, Report
from trainer.data.images import open_image
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.foreign import is_foreign
from trainer.data.importing.labels import label_key
from trainer.data.importing.outlines import (
    IGNORED_SHAPE,
    IN_PIXELS,
    TARGET_SHAPE,
    Drawing,
    json_files,
    means_ignore,
    name_below,
    orientation_of,
    outlined_as_json,
    outlines,
    possible_frames,
)
from trainer.data.json_fields import LARGEST_FILE, load_json, read_sentence
from trainer.data.picture_paths import PictureSearch
from trainer.data.polygons import Budget, Polygon, painted_area, read_points
from trainer.reporter import Progress

# One point every 3 degrees: off by a third of a pixel at most for a radius of 1000.
CIRCLE_POINTS = 120
# In LabelMe's own labels.txt; its converters treat them specially as well.
BACKGROUND_LABELS = ("_background_", "__background__")
_EMBEDDED = "write out the picture that the file itself holds: labelme_export_json FILE"
WITHOUT_INSIDE = ("point", "points", "line", "linestrip")


def read_labelme(
    folder: Path,
    search: PictureSearch,
    findings: list[Finding],
    conventions: Conventions | None = None,
    progress: Progress | None = None,
) -> Iterator[Drawing]:
    """The pictures with valid annotations; a finding for every error."""
    conventions = conventions or Conventions()
    recorded: dict[str, str] = {}
    apart: list[Path] = []
    start = len(findings)
    # Pictures at their recorded paths come first: then all names are known, and a picture that must
    # be searched for is not mistaken for another one of the same name.
    files = json_files(folder)
    for done, path in enumerate(files, 1):
        if progress is not None:
            progress("importing pictures", done, len(files))
        if is_foreign(Report(path, findings)):
            continue
        report = Report(path, findings, entry=str(path))
        notes = _notes(report, conventions)
        if notes is None:
            continue
        name = notes.get("imagePath")
        if isinstance(name, str):
            recorded[str(path)] = os.path.join(path.parent, name)
            if not search.is_recorded(name, path.parent, folder):
                apart.append(path)
                continue
        yield from _drawing(report, notes, folder, search, conventions)
    search.register(recorded.values())
    for path in apart:
        report = Report(path, findings, entry=str(path))
        notes = _notes(report, conventions)
        if notes is not None:
            yield from _drawing(report, notes, folder, search, conventions)
    findings[start:] = sorted(findings[start:], key=lambda one: one.entry or one.where)
    for entry in {one.entry for one in findings[start:] if one.entry}:
        # A file that cannot be read is called as its picture.
        conventions.lost.add(entry)
        conventions.lost.add(recorded.get(entry, entry))


def _notes(report: Report, conventions: Conventions) -> dict[str, Any] | None:
    """The parsed file of one picture; None with a finding added."""
    allowed = "LabelMe's {imagePath, shapes}"
    notes = load_json(report, object, allowed, LARGEST_FILE, conventions.text)
    if other := _other_content(notes):
        fix = "move it out of the folder; another tool's annotations: export COCO's instances"
        report.add("file", other, allowed, fix)
        return None
    if isinstance(notes, dict) and "annotations" not in notes:
        return notes
    if isinstance(notes, dict | list):
        whole = Report(report.path, report.findings)  # its entries cannot be left out as one
        got = "COCO's annotations" if isinstance(notes, dict) else "a list, of Sa2VA or others"
        allowed = "LabelMe's files, or one file of another tool for each split"
        whole.add("file", got, allowed, "import it on its own, by its name")
    elif notes is not None:
        report.add("file", notes, allowed, "correct the file or fetch it again")
    return None


def _other_content(notes: object) -> str:
    """What a JSON file holds that is no tool's annotations, as of classes or settings; or empty."""
    if isinstance(notes, dict) and notes.keys().isdisjoint(("annotations", "imagePath", "shapes")):
        return f"the keys {some(notes)}" if notes else "no key"
    if isinstance(notes, list) and notes and not any(isinstance(one, dict) for one in notes):
        return "a list without objects"
    return ""


def _drawing(
    report: Report, notes: dict[str, Any], folder: Path, search: PictureSearch,
    conventions: Conventions,
) -> Iterator[Drawing]:  # fmt: skip
    """The drawing of the file's picture, if both are usable."""
    findings, path = report.findings, report.path
    before = len(findings)
    placed = search.find(report, "imagePath", notes.get("imagePath"), path.parent, folder)
    if placed is None:
        if isinstance(notes.get("imageData"), str):
            fix = f"{_EMBEDDED}; or {findings[-1].fix}"
            findings[-1] = replace(findings[-1], fix=fix)
        return
    picture, root = placed
    opened = open_image(Report(picture, findings, report.entry), orientation_of)
    turn = opened and _turn(report, notes, conventions, *opened)
    if opened is None or turn is None:
        return
    outlined = _outlined(report, notes.get("shapes"), opened[0], turn, conventions.labels)
    # Without all of its shapes a label would have only a part of its answer.
    yield Drawing(name_below(picture, root), picture, path, outlined, len(findings) == before)


def _turn(
    report: Report, notes: dict[str, Any], conventions: Conventions, upright: Size,
    orientation: int,
) -> int | None:  # fmt: skip
    """The orientation to turn points by, 1 for none; None with a finding added.

    For a quarter turn the annotated size [H, W] shows the frame. Otherwise LabelMe's files are
    upright; whether X-AnyLabeling's are depends on what its user clicked.
    """
    annotated = notes.get("imageHeight"), notes.get("imageWidth")
    fits = possible_frames(annotated, upright, orientation)
    if annotated == (None, None):
        fits = ["upright"] if orientation == 1 else ["upright", "stored"]
    if not fits:
        fix = "open it in LabelMe again and save it, with the shapes where they belong"
        report.add("imageHeight, imageWidth", annotated, f"{upright}, the upright picture's", fix)
        return None
    frame = fits[0]
    if len(fits) > 1 and conventions.frame is not None:
        frame = conventions.frame
    elif len(fits) > 1 and "checked" in notes:  # X-AnyLabeling's own key
        got = f"X-AnyLabeling's shapes on a picture with EXIF orientation {orientation}"
        allowed = "a size that shows whether they refer to the picture as stored or upright"
        fix = "say it with --frame stored, or --frame upright if X-AnyLabeling rotated its copy"
        report.add("imageHeight, imageWidth", got, allowed, fix)
        return None
    if frame == "upright":
        return 1
    conventions.assume("rotated pictures' shapes read as drawn on the picture as stored")
    return orientation


def _outlined(
    report: Report, shapes: object, size: Size, turn: int, labels: set[str]
) -> dict[str, str]:
    """The polygons of each label in JSON, the ignored ones last in each.

    `labels` gets every spelling; a label is spelled here as in its first shape.
    """
    if not isinstance(shapes, list):
        report.add("shapes", shapes, "a list of LabelMe's shapes", "annotate the picture again")
        return {}
    targets: dict[str, list[Polygon]] = {}
    spelled: dict[str, str] = {}
    ignored: list[Polygon] = []
    budget = Budget()
    for index, shape in enumerate(shapes):
        what, fields = f"shapes[{index}]", shape if isinstance(shape, dict) else {}
        if fields.get("label") in BACKGROUND_LABELS:
            fix = "take the shape out: what is not outlined is background"
            report.add(f"{what}.label", fields["label"], "the name of a thing", fix)
            continue
        label = read_sentence(report, f"{what}.label", fields.get("label"))
        polygons = _polygons(report, what, fields, size, budget, turn)
        if label is None:
            continue
        if means_ignore(label):
            ignored += [Polygon(IGNORED_SHAPE, points) for points in polygons]
        else:
            labels.add(fields["label"])
            found = targets.setdefault(spelled.setdefault(label_key(label), label), [])
            found += [Polygon(TARGET_SHAPE, points) for points in polygons]
    return outlined_as_json(
        {label: (*found, *ignored) for label, found in targets.items() if found}
    )


def _polygons(
    report: Report, what: str, shape: dict[str, Any], size: Size, budget: Budget, turn: int
) -> list[FloatArray]:
    """The outlines [N, 2] of one shape; empty with a finding added."""
    kind = shape.get("shape_type", "polygon")
    read = _KINDS.get(kind) if isinstance(kind, str) else None
    if read is None:
        fix = "draw it as a polygon, or take it out"
        fix += ": it has no inside" if kind in WITHOUT_INSIDE else ""
        report.add(f"{what}.shape_type", kind, ", ".join(_KINDS), fix)
        return []
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind, 4)
    points = read_points(report, f"{what}.points", shape.get("points"), least)
    if points is None:
        return []
    if kind != "mask" and np.abs(points).max() <= 1:
        report.add(f"{what}.points", points.tolist(), *IN_PIXELS)
        return []
    try:
        found = read(points, shape.get("mask"))
    except Exception as error:
        # Broad as for pictures: a damaged mask makes Pillow raise nearly anything.
        allowed = "a PNG in base64, as large as the box of its points"
        report.add(f"{what}.mask", error, allowed, "draw the shape again")
        return []
    last = 1 if kind == "mask" else 0  # its outlines run through the centres of pixels
    found = [_turned(outline, turn, size[0] - last, size[1] - last) for outline in found]
    if not all(budget.covers(report, f"{what}.points", outline, size) for outline in found):
        return []
    if not any(painted_area(Polygon(TARGET_SHAPE, outline), *size) for outline in found):
        allowed = f"some part within width {size[1]}, height {size[0]}"
        report.add(f"{what}.points", points.tolist(), allowed, "draw it again or take it out")
        return []
    return found


def _turned(points: FloatArray, orientation: int, height: int, width: int) -> FloatArray:
    """Points [N, 2] of a stored picture in its upright one, which is of this size."""
    x, y = points.T
    if orientation >= 5:
        x, y = y, x
    x = width - x if orientation in (2, 3, 6, 7) else x
    y = height - y if orientation in (3, 4, 7, 8) else y
    return np.stack([x, y], axis=1)


def _polygon(points: FloatArray, mask: object) -> list[FloatArray]:
    return [points]


def _rectangle(points: FloatArray, mask: object) -> list[FloatArray]:
    """From two opposite corners, or all four, as X-AnyLabeling writes them."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]


def _circle(points: FloatArray, mask: object) -> list[FloatArray]:
    """From the centre and a point on the rim."""
    centre, rim = points[:2]
    angles = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [centre + np.hypot(*(rim - centre)) * turned]


def _mask(points: FloatArray, mask: object) -> list[FloatArray]:
    """From its box, two corners, and a picture of the mask, as LabelMe's AI tools write it."""
    if not isinstance(mask, str):
        raise ValueError(f"{mask!r}")
    with Image.open(BytesIO(base64.b64decode(mask, validate=True)), formats=["PNG"]) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise ValueError(f"{image.width} x {image.height} pixels")
        corner = np.trunc(points.min(axis=0))
        box = (np.trunc(points.max(axis=0)) - corner + 1).astype(int)
        # A mask that was moved has fractions of pixels, and tools differ on the last pixel.
        if (np.abs(box - image.size) > 1).any():
            raise ValueError(
                f"{image.width} x {image.height} pixels for a box of {box[0]} x {box[1]}"
            )
        inside = np.asarray(image.convert("L")) > 0
    return [outline + corner for outline in outlines(inside)]


_KINDS: dict[str, Callable[[FloatArray, object], list[FloatArray]]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
    "oriented_rectangle": _polygon,  # LabelMe: four corners
    "rotation": _polygon,  # X-AnyLabeling: the same
    "quadrilateral": _polygon,  # X-AnyLabeling: four corners at any angles
}
