"""Reads Sa2VA's annotations for fine-tuning, a list of pictures with masks and a text for each.

`[{"image": name, "mask": [[polygon, …], …], "text": [phrase, …]}, …]`: a mask is all polygons of
one answer, a polygon [x1, y1, x2, y2, …] in pixels of the picture as stored, as Sa2VA opens it.
Sizes are not recorded: they are the pictures'. Texts lose their capitals and a full stop, there as
here. Often each text has an entry of its own: entries of one picture are read as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

from PIL import Image

from profiles.text import counted
from trainer.data.arrays import Size
from trainer.data.findings import Report
from trainer.data.formats.coco import PLACE
from trainer.data.images import open_image
from trainer.data.importing.encoding import Conventions
from trainer.data.picture_paths import PictureSearch
from trainer.data.pictures import as_phrase

ANNOTATIONS = "Sa2VA's annotations"  # as if it were COCO's info.contributor
_KEYS = ("image", "mask", "text")
_DEEPEST = 4  # levels of lists around a polygon; one or two are usual
_FIX = "correct the entry or take it out"


def is_sa2va(entries: list[Any]) -> bool:
    """Whether some entry has two of the keys at least; `masks` and `texts` count as well."""
    found = ({key.removesuffix("s") for key in one} for one in entries if isinstance(one, dict))
    return any(len(keys.intersection(_KEYS)) > 1 for keys in found)


def as_coco(
    report: Report, entries: list[Any], search: PictureSearch, conventions: Conventions
) -> dict[str, Any]:
    """The entries as a COCO document, each with its place; a finding for every error."""
    images: dict[Path, dict[Any, Any]] = {}
    notes: list[dict[Any, Any]] = []
    numbers: dict[str, int] = {}
    search.register(one.get("image") for one in entries if isinstance(one, dict))
    for index, entry in enumerate(entries if _in_pixels(report, entries) else []):
        place, before = f"[{index}]", len(report.findings)
        if not isinstance(entry, dict):
            report.add(place, entry, f"an object with {', '.join(_KEYS)}", _FIX)
            conventions.lost.add()
            continue
        answers = list(_answers(report, place, entry))
        found = _named(report, place, entry, "image", "the name of a picture") and search.find(
            report, f"{place}.image", entry["image"]
        )
        size = found and _size(report, place, found[0], conventions)
        if len(report.findings) > before:
            conventions.lost.add(entry.get("image"))
        if not found or not size:
            continue
        named = {PLACE: place, "id": len(images), "file_name": entry["image"],
                 "height": size[0], "width": size[1]}  # fmt: skip
        image = images.setdefault(found[0], named)["id"]
        for where, phrase, outline in answers:
            category = numbers.setdefault(phrase, len(numbers))
            notes.append({PLACE: where, "id": len(notes), "image_id": image,
                          "category_id": category, "segmentation": outline})  # fmt: skip
    categories = [{"id": number, "name": phrase} for phrase, number in numbers.items()]
    return {"images": list(images.values()), "annotations": notes, "categories": categories,
            "info": {"contributor": ANNOTATIONS}}  # fmt: skip


def _in_pixels(report: Report, entries: list[Any]) -> bool:
    """Whether any coordinate is above 1; if not, a finding about the whole file is added."""
    masks = [one.get("mask") for one in entries if isinstance(one, dict)]
    parts = [part for part in _polygons(masks, _DEEPEST + 1) if isinstance(part, list)]
    if not parts or any(type(x) not in (int, float) or x > 1 for part in parts for x in part):
        return True
    fix = "multiply x by the picture's width and y by its height"
    report.add("mask", "no coordinate above 1", "pixels of the picture", fix)
    return False


def _answers(
    report: Report, place: str, entry: dict[str, Any]
) -> Iterator[tuple[str, str, object]]:
    """(place of the mask, phrase, COCO's segmentation) of every mask with a text."""
    each = "a list with one for each "
    sound = [_named(report, place, entry, "mask", f"{each}text", list),
             _named(report, place, entry, "text", f"{each}mask", list | str)]  # fmt: skip
    if not all(sound):
        return
    masks, texts = entry["mask"], entry["text"]
    if isinstance(texts, str):
        masks, texts = [masks], [texts]
    if len(masks) != len(texts):
        got, fix = f"{len(texts)} for {counted(len(masks), 'mask')}", "write one for each, in order"
        report.add(f"{place}.text", got, "as many as masks", fix)
        return
    for number, (mask, text) in enumerate(zip(masks, texts, strict=True)):
        before, what = len(report.findings), f"{place}.text[{number}]"
        phrase = as_phrase(report, what, text)
        if phrase:
            outline = list(_polygons(mask)) if isinstance(mask, list | dict) else mask
            yield f"{place}.mask[{number}]", phrase.removesuffix("."), outline
        elif len(report.findings) == before:
            report.add(what, text, "the words for this mask", "write them or take the mask out")


def _named(
    report: Report, place: str, entry: dict[str, Any], key: str, allowed: str,
    kind: type | UnionType = object,
) -> bool:  # fmt: skip
    """Whether the entry has something of that kind by this key; if not, a finding is added."""
    if key in entry and isinstance(entry[key], kind):
        return True
    got = entry[key] if key in entry else f"the keys {', '.join(entry)}"
    report.add(f"{place}.{key}", got, allowed, _FIX)
    return False


def _polygons(value: object, deepest: int = _DEEPEST) -> Iterator[object]:
    """The polygons of nested lists, whose points may be pairs; what is none comes as it is."""
    if not deepest or not isinstance(value, list) or not any(map(_is_nested, value)):
        yield from [] if value == [] else [value]
    elif all(map(_is_point, value)):
        yield [x for pair in value for x in pair]
    else:
        for inner in value:
            yield from _polygons(inner, deepest - 1)


def _is_nested(value: object) -> bool:
    return isinstance(value, list | dict)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and [type(x) in (int, float) for x in value] == [True, True]


def _size(report: Report, place: str, picture: Path, conventions: Conventions) -> Size | None:
    """The size of the picture in the frame of its outlines; None with a finding added."""
    about = Report(picture, report.findings, f"{report.path}: {place}")
    opened = open_image(about, stored_size)
    if opened is None:
        return None
    upright, stored = opened
    return upright if conventions.frame == "upright" else stored


def stored_size(image: Image.Image) -> Size:
    """Height and width of a picture as it is stored, whatever its orientation."""
    return image.height, image.width
