"""Reads Label Studio's JSON, the only export that keeps brush masks exactly, with their holes.

It is a list of tasks, each of a picture and its annotations, whose results are labelled regions.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from profiles.text import some
from trainer.data.arrays import Size
from trainer.data.findings import Report
from trainer.data.formats.coco import PLACE
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.label_studio_shapes import coordinates, shape_of

TASKS = "Label Studio's tasks"  # as if it were COCO's info.contributor
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_SHAPED = {"points", "rle", "x", "imageDataURL", "vertices"}  # keys of a region with a place
_FIX = "correct it in Label Studio and export again, or take it out"


def as_coco(report: Report, tasks: list[Any], conventions: Conventions) -> dict[str, Any]:
    """The tasks as a COCO document, each entry with its place; a finding for every error."""
    images: list[dict[Any, Any]] = []
    notes: list[dict[Any, Any]] = []
    numbers: dict[str, int] = {}
    for number, task in enumerate(tasks if _in_per_cent(report, tasks) else []):
        place = f"tasks[{number}]"
        before, regions = len(report.findings), _regions(report, place, task, conventions)
        size = _size(report, place, list(regions.values()))
        if len(report.findings) > before:
            conventions.lost.add(_picture(task.get("data")) if isinstance(task, dict) else None)
        if size is None:
            continue
        images.append({PLACE: place, "id": number, "file_name": _picture(task.get("data")),
                       "height": size[0], "width": size[1]})  # fmt: skip
        for index, region in regions.items():
            shape = shape_of(region["value"], size)
            for label in _labels(region):
                category = numbers.setdefault(label, len(numbers))
                notes.append({PLACE: f"{place}.result[{index}]", "id": len(notes), **shape,
                              "image_id": number, "category_id": category})  # fmt: skip
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": notes, "categories": categories,
            "info": {"contributor": TASKS}}  # fmt: skip


def _in_per_cent(report: Report, tasks: list[Any]) -> bool:
    """Whether any region has a number above 1; if not, a finding about the whole file is added."""
    results = (one.get("result") for task in tasks for one in _annotations(task) or ())
    found = (coordinates(one["value"]) for result in results if isinstance(result, list)
             for one in result if _labels(one))  # fmt: skip
    outlines = [one for one in found if one is not None and one.size]
    if not outlines or any(one.max() > 1 for one in outlines):
        return True
    fix = "multiply them by 100"
    allowed = "per cent of the picture's width and height, 0 to 100"
    report.add("value", "no number above 1, as of fractions", allowed, fix)
    return False


def _annotations(task: object) -> list[dict[str, Any]] | None:
    """A task's annotations, without those cancelled; None if it has no list of them."""
    given = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        return None
    return [one for one in given if not one.get("was_cancelled")]


def _regions(
    report: Report, place: str, task: Any, conventions: Conventions
) -> dict[int, dict[str, Any]]:
    """The labelled regions of a task by their places in its result; none with a finding or note."""
    kept = _annotations(task)
    if kept is None:
        allowed = "a task with its annotations, as the export JSON has (not JSON-MIN)"
        got = f"the keys {some(task)}" if isinstance(task, dict) else task
        fix = "export as JSON from Label Studio; from other tools as COCO's instances"
        report.add(place, got, allowed, fix)
        return {}
    if len(kept) > 1:
        fix = "keep one of them in Label Studio: import cannot know whose outlines are right"
        report.add(f"{place}.annotations", f"{len(kept)} of one picture", "one", fix)
        return {}
    result = kept[0].get("result") if kept else None
    listed = result if isinstance(result, list) else []
    drawn = {index: one for index, one in enumerate(listed) if _is_shaped(one)}
    regions = {index: one for index, one in drawn.items() if _labels(one)}
    named = {one.get("id") for one in regions.values()}
    unnamed = {one["id"] for one in drawn.values() if one.get("id")} - named
    conventions.assume("outlines without a label are not read", len(unnamed))
    if not regions:
        why = _unfinished(task) if not kept else ""
        conventions.leave_out(_base_name(_picture(task.get("data")), place), why)
    return {} if _is_ambiguous(report, place, regions) else regions


def _unfinished(task: dict[str, Any]) -> str:
    """Why a task has no annotation, as far as Label Studio says it."""
    if task["annotations"]:
        return "skipped in Label Studio"
    if task.get("drafts"):
        return "only drafts, not submitted"
    return "only predicted, not accepted" if task.get("predictions") else ""


def _is_ambiguous(report: Report, place: str, regions: dict[int, dict[str, Any]]) -> bool:
    """Whether it is open where the outlines belong; a finding is added then."""
    before = len(report.findings)
    if turned := [one["image_rotation"] for one in regions.values() if one.get("image_rotation")]:
        fix = "turn the picture back in Label Studio, look where its outlines are, and save it"
        report.add(f"{place}: image_rotation", turned[0], "0: an unturned picture", fix)
    shown = {(one.get("to_name"), one.get("item_index") or 0) for one in regions.values()}
    if len(shown) > 1 or any(index for _, index in shown):
        fix = "make a task of each picture"
        report.add(f"{place}: to_name, item_index", "several pictures", "one picture a task", fix)
    return len(report.findings) > before


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


def _is_shaped(region: object) -> bool:
    """Whether a part of a result has a place on the picture, other than a choice about one."""
    value = region.get("value") if isinstance(region, dict) else None
    return isinstance(value, dict) and bool(value.keys() & _SHAPED)


def _labels(region: Any) -> list[str]:
    """The labels of a region; empty for choices, texts and regions without a label."""
    if not _is_shaped(region):
        return []
    kind = str(region.get("type"))  # choices about a region repeat its outline
    listed = region["value"].get(kind if kind.endswith("labels") else "labels")
    listed = listed or region["value"].get("labels")
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def _picture(data: object) -> str | None:
    """The address of a task's picture: the text with a picture's suffix, or else the only text."""
    texts = [one for one in data.values() if isinstance(one, str)] if isinstance(data, dict) else []
    named = [one for one in texts if _suffix(one) in _PICTURES]
    return next(iter(named or texts), None)


def _base_name(address: str | None, otherwise: str) -> str:
    return PurePosixPath(unquote(address)).name or otherwise if address else otherwise


def _suffix(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return PurePosixPath(parts.query or parts.path).suffix.lower()
