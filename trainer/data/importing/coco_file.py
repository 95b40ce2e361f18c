"""Reads a user's COCO file, or another tool's list as one, and says how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from profiles.sizes import MIB
from profiles.text import argument
from trainer.data.findings import Report
from trainer.data.formats.coco import (
    CocoEntry,
    ListedCoco,
    file_name_of,
    id_of,
    listed_coco,
    objects,
)
from trainer.data.formats.coco_document import parse_coco
from trainer.data.importing import label_studio, sa2va
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.lost import Lost
from trainer.data.importing.yolo import as_coco as labels_as_coco
from trainer.data.importing.yolo_folder import YoloFolder
from trainer.data.json_fields import load_json
from trainer.data.picture_paths import PictureSearch
from trainer.reporter import Progress

_OFTEN = 1000  # objects between two reports
_IDS = ("id", "image_id", "category_id")


def read_listed(
    report: Report, search: PictureSearch, conventions: Conventions, progress: Progress,
    yolo: YoloFolder | None = None,
) -> ListedCoco:  # fmt: skip
    """COCO's file, Label Studio's tasks, Sa2VA's list or YOLO's folder; the outlines unread."""
    allowed = (
        "COCO's {images, annotations, categories}, Label Studio's list of tasks, or Sa2VA's of "
        "{image, mask, text}"
    )
    before = len(report.findings)
    if report.path.is_file():
        mib = report.path.stat().st_size / MIB
        progress(f"reading {report.path.name}, {mib:.0f} MiB", 0, 1)
    if yolo is not None:
        parsed: Any = labels_as_coco(report, yolo, search, conventions, progress)
    else:
        parsed = load_json(report, object, allowed, text_of=conventions.document, parse=parse_coco)
    if isinstance(parsed, list) and sa2va.is_sa2va(parsed):
        parsed = sa2va.as_coco(report, parsed, search, conventions)
    elif isinstance(parsed, list) and parsed:
        parsed = label_studio.as_coco(report, parsed, conventions)
    if isinstance(parsed, dict) and "shapes" in parsed and "images" not in parsed:
        fix = f"name the folder that it is in: {argument(report.path.parent)}"
        report.add("file", "LabelMe's or ReasonSeg's, of one picture", allowed, fix)
    elif isinstance(parsed, dict):
        listed = listed_coco(report, parsed)
        conventions.labels |= _names(parsed)
        entries = _counted(parsed, listed, conventions.lost, progress)
        return listed._replace(entries=entries)
    if len(report.findings) == before:
        report.add("file", parsed, allowed, "correct the file or fetch it again")
    return ListedCoco({}, {}, iter(()))


def _lose(parsed: dict[str, Any], listed: ListedCoco, lost: Lost) -> None:
    """Register what the broken images and the annotations are about that are not in `listed`."""
    names: dict[int | None, object] = {None: None}
    for image in objects(parsed, "images"):
        number, name = id_of(image), file_name_of(image)
        names.setdefault(number, name)
        if number not in listed.images or listed.images[number].file_name != name:
            lost.add(name)
    seen: set[int | None] = {None}
    for mark in objects(parsed, "annotations"):
        number, image_id, category = (id_of(mark, key) for key in _IDS)
        label = None if category is None else listed.categories.get(category)
        if number in seen or image_id not in listed.images or label is None:
            lost.add(names.get(image_id), label)
        seen.add(number)


def _names(parsed: dict[str, Any]) -> set[str]:
    """The names of categories as they are spelled in the file."""
    names = (one.get("name") for one in objects(parsed, "categories"))
    return {name for name in names if isinstance(name, str)}


def _counted(
    parsed: dict[str, Any], listed: ListedCoco, lost: Lost, progress: Progress
) -> Iterator[CocoEntry]:
    """The entries, with progress; if some of the file are not among them, those are lost."""
    total, done = len(objects(parsed, "annotations")), 0
    for entry in listed.entries:
        if done % _OFTEN == 0:
            progress("checking annotations", done, total)
        done += 1
        yield entry
    if done < total or len(listed.images) < len(objects(parsed, "images")):
        _lose(parsed, listed, lost)
