"""Reads Ultralytics' YOLO for segmentation: a text file of outlines for each picture.

A row is the number of a class and x, y of each corner, as fractions of the upright picture, which
is what Ultralytics opens. A row of four numbers is a box. A blank file, or none, is of a picture
without any of the things.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.arrays import Size
from trainer.data.findings import Report
from trainer.data.formats.coco import PLACE
from trainer.data.images import PICTURE_SUFFIXES, open_image
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.outlines import name_below, visible
from trainer.data.importing.sa2va import stored_size
from trainer.data.importing.yolo_folder import YoloFolder, matched
from trainer.data.picture_paths import PictureSearch
from trainer.reporter import Progress

LABELS = "YOLO's labels"  # as if it were COCO's info.contributor
_ROW = "the number of a class, then x and y of three corners or more, all fractions"
_FIX = "outline it again, or take the line out"
_CLASS = re.compile(r"([0-9]{1,9})(\.0*)?")  # Ultralytics reads numbers of classes as fractions
_OUTSIDE = 0.05  # of the picture: CVAT's outlines may reach that far beyond it
_ANY = ("the path of a picture, called as the file of labels", "fetch it, or take the file out")
_OFTEN = 100  # files between two reports
_SHOWN = 5  # pictures that a file of labels may belong to


def as_coco(
    report: Report, folder: YoloFolder, search: PictureSearch, conventions: Conventions,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The labels as a COCO document, each with its file and line; a finding for every error."""
    names = folder.names(report, conventions)
    images: list[dict[Any, Any]] = []
    notes: list[dict[Any, Any]] = []
    unread = set(folder.pictures)
    found = matched(folder, _elsewhere(folder, search)) if names else ()
    for done, (path, pictures) in enumerate(found):
        if done % _OFTEN == 0:
            progress("reading labels", done, len(folder.labels))
        unread.difference_update(pictures)
        search.missing += not pictures
        place = name_below(path, folder.root)
        size = _size(report, place, pictures, conventions)
        if size is None:
            conventions.lost.add(path.name)
            continue
        images.append({PLACE: place, "id": len(images), "file_name": _named(pictures[0], search),
                       "height": size[0], "width": size[1]})  # fmt: skip
        before = len(report.findings)
        for line, number, outline in _rows(report, path, place, names, conventions):
            notes.append({PLACE: f"{place}: line {line}: outline", "id": len(notes),
                          "image_id": len(images) - 1, "category_id": number,
                          **_shape(outline, size)})  # fmt: skip
        if len(report.findings) > before:
            conventions.lost.add(path.name)
    for picture in sorted(unread):
        conventions.leave_out(name_below(picture, folder.root))
    categories = [{PLACE: f"{folder.classes.name}: names[{number}]", "id": number, "name": name}
                  for number, name in names.items()]  # fmt: skip
    return {"images": images, "annotations": notes, "categories": categories,
            "info": {"contributor": LABELS}}  # fmt: skip


def _elsewhere(folder: YoloFolder, search: PictureSearch) -> list[Path]:
    """The pictures in folders that are searched and not in the folder of the labels."""
    outside = [one for one in search.folders if not one.is_relative_to(folder.root)]
    below = {path for one in outside for path in visible(one)}
    return sorted(path for path in below if path.suffix.lower() in PICTURE_SUFFIXES
                  and not path.is_relative_to(folder.root))  # fmt: skip


def _named(picture: Path, search: PictureSearch) -> str:
    """The picture's path from the first searched folder that has it: there it will be found."""
    return name_below(picture, next(one for one in search.folders if picture.is_relative_to(one)))


def _size(
    report: Report, place: str, pictures: list[Path], conventions: Conventions
) -> Size | None:
    """The size of the picture in the frame of its outlines; None with a finding added."""
    about = Report(report.path, report.findings, f"{report.path}: {place}")
    if len(pictures) == 1:
        about.path = pictures[0]
        upright, stored = open_image(about, stored_size) or (None, None)
        return stored if conventions.frame == "stored" else upright
    if pictures:
        got = f"{len(pictures)}: {', '.join(str(one) for one in pictures[:_SHOWN])}"
        about.add(f"{place}: picture", got, _ANY[0], "keep one of them there")
    else:
        about.add(f"{place}: picture", "no such file", *_ANY)
    return None


def _rows(
    report: Report, path: Path, place: str, names: dict[int, str], conventions: Conventions
) -> Iterator[tuple[int, int, list[float]]]:
    """(line, class, fractions) of each sound row; a finding for every other."""
    try:
        text = conventions.text(path.read_bytes())
    except (OSError, ValueError, LookupError) as error:
        about = Report(report.path, report.findings, f"{report.path}: {place}")
        about.add(place, error, "a text file of labels", "export it again")
        return
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        what, fields = f"{place}: line {line}", row.split()
        found = _CLASS.fullmatch(fields[0])
        number = int(found[1]) if found else None
        values = _numbers(fields[1:])
        if values is None or len(values) < 4 or len(values) % 2:
            report.add(f"{what}: row", row.strip(), _ROW, _FIX)
        elif number not in names:
            allowed = f"a number of {', '.join(map(str, list(names)[:_SHOWN]))}"
            allowed += ", …" if len(names) > _SHOWN else ""
            report.add(f"{what}: class", fields[0], allowed, "add its name, or take the line out")
        elif not all(-_OUTSIDE <= x <= 1 + _OUTSIDE for x in values):
            got = f"numbers from {min(values):g} to {max(values):g}"
            fix = "divide pixels by the picture's width and height"
            report.add(f"{what}: row", got, "fractions of the picture, 0 to 1", fix)
        else:
            yield line, number, values


def _numbers(fields: list[str]) -> list[float] | None:
    """The numbers; without a fifth one of a box, which is a score or a track."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return None
    sound = all(map(math.isfinite, values))
    return values[:4] if sound and len(values) == 5 else values if sound else None


def _shape(values: list[float], size: Size) -> dict[str, Any]:
    """COCO's segmentation of a row, or the bbox of one that is a box: its middle and its sides."""
    height, width = size
    scaled = [x * (height if place % 2 else width) for place, x in enumerate(values)]
    if len(scaled) > 4:
        return {"segmentation": [scaled]}
    x, y, across, down = scaled
    return {"segmentation": [], "bbox": [x - across / 2, y - down / 2, across, down]}
