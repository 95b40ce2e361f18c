"""COCO's annotation format: pictures, categories, and masks as polygons or run lengths.

A mask is a list of polygons ``[x1, y1, x2, y2, …]`` in pixels, a run-length encoding ``{size: [H,
W], counts: [n, …] or text}``, or a list of such encodings; an empty list covers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from trainer.data.arrays import Size
from trainer.data.findings import DataError, Report
from trainer.data.formats.coco_document import parse_coco, value_of
from trainer.data.formats.coco_masks import FIX, LARGEST_COORDINATE, Part, painted, read_parts
from trainer.data.json_fields import load_json
from trainer.data.pictures import as_phrase

# Tools that do not record their name. CVAT exports through Datumaro.
DATUMARO, SUPERVISION = "Datumaro", "supervision"
_DATUMARO_INFO = {"contributor", "date_created", "description", "url", "version", "year"}
PLACE = ("place",)  # key of an entry's place in another tool's file; JSON's keys are all text


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``; `size` is (height, width)."""

    place: str  # in the file
    file_name: object
    size: Size


class CocoMask(NamedTuple):
    """One entry of ``annotations``; a crowd has one outline for all its members."""

    image: int
    category: int
    parts: tuple[Part, ...]
    place: str = ""  # of its outline in the file
    crowd: bool = False
    grouped: bool = True  # whether `crowd` means a crowd, rather than one painted object
    bbox: object = None  # as in the file, or unparsed

    @property
    def box(self) -> tuple[Part, ...] | None:
        """The outline of its ``bbox``: empty for a box of no size, None for no usable box."""
        return _box(value_of(self.bbox))


@dataclass(frozen=True)
class Coco:
    """What is in an annotation file, by id.

    `unusable`: annotations with a broken mask, by id. They are findings already; if they are left
    out, what they cover must not become background.
    """

    images: dict[int, CocoImage]
    categories: dict[int, str]
    masks: dict[int, CocoMask]
    unusable: dict[int, CocoMask] = field(default_factory=dict)
    tool: str = ""  # what wrote it: info.contributor, DATUMARO or SUPERVISION


class CocoEntry(NamedTuple):
    """One entry of ``annotations``, its fields as in the file, with `crowd` as in `CocoMask`.

    `segmentation` and `bbox` may be unparsed; `value_of` parses them.
    """

    number: int
    image: int
    category: int
    place: str
    crowd: bool
    grouped: bool
    segmentation: object
    bbox: object


class ListedCoco(NamedTuple):
    """What is in an annotation file, its annotations one by one.

    Findings about their ids are added on the way.
    """

    images: dict[int, CocoImage]
    categories: dict[int, str]
    entries: Iterator[CocoEntry]
    tool: str = ""


def read_coco(report: Report, text_of: Callable[[bytes], str] | None = None) -> Coco:
    """Read the annotation file at the report's path; a finding for every error.

    `text_of` decodes files of other tools.
    """
    parsed = load_json(report, dict, "{images, annotations, categories}", text_of=text_of,
                       parse=parse_coco)  # fmt: skip
    return Coco({}, {}, {}) if parsed is None else checked_coco(report, parsed)


def checked_coco(report: Report, parsed: dict[str, Any]) -> Coco:
    """The valid parts of COCO's document; a finding for every error."""
    listed = listed_coco(report, parsed)
    masks: dict[int, CocoMask] = {}
    unusable: dict[int, CocoMask] = {}
    for entry in listed.entries:
        mask, usable = read_mask(report, entry, listed.images[entry.image].size)
        (masks if usable else unusable)[entry.number] = mask
    return Coco(listed.images, listed.categories, masks, unusable, listed.tool)


def listed_coco(report: Report, parsed: dict[str, Any]) -> ListedCoco:
    """COCO's document with its annotations' outlines unread; a finding for every other error."""
    images, broken_images = _read_images(report, parsed)
    categories, broken_categories = _read_categories(report, parsed)
    if _is_panoptic(parsed):
        allowed = "instances, each with its segmentation"
        fix = "export the dataset as COCO's instances, not as panoptic"
        report.add("annotations", "COCO's panoptic segments_info", allowed, fix)
        return ListedCoco({}, {}, iter(()))
    if not {"images", "categories"} <= parsed.keys():
        # Every annotation would repeat that the picture or category it refers to is missing.
        return ListedCoco(images, categories, iter(()))
    listed = _listed(report, parsed, (images, broken_images), (categories, broken_categories))
    return ListedCoco(images, categories, listed, _tool(parsed))


def _listed(
    report: Report, parsed: dict[str, Any], images: tuple[dict[int, CocoImage], set[int]],
    categories: tuple[dict[int, str], set[int]],
) -> Iterator[CocoEntry]:  # fmt: skip
    """The annotations of sound images and categories; both arguments come with the broken ids."""
    tool = _tool(parsed)
    for place, number, fields in _entries(report, parsed, "annotations"):
        image, category = number_of(fields.get("image_id")), number_of(fields.get("category_id"))
        # Annotations of a broken image or category are dropped without a finding of their own.
        if type(image) is int and image in images[1]:
            continue
        if type(category) is int and category in categories[1]:
            continue
        if type(image) is not int or image not in images[0]:
            report.add(f"{place}.image_id", image, "the id of one of the images", FIX)
        elif type(category) is not int or category not in categories[0]:
            report.add(f"{place}.category_id", category, "the id of one of the categories", FIX)
        else:
            crowd, grouped = bool(fields.get("iscrowd")), _is_said_to_be_crowd(fields, tool)
            outline, box = fields.get("segmentation"), fields.get("bbox")
            where = place if PLACE in fields else f"{place}.segmentation"
            yield CocoEntry(number, image, category, where, crowd, grouped, outline, box)


def read_mask(report: Report, entry: CocoEntry, size: Size) -> tuple[CocoMask, bool]:
    """The mask on a picture of this size, and whether it is usable; if not, a finding is added."""
    what, outline = entry.place, value_of(entry.segmentation)
    parts = read_parts(report, what, [] if outline is None else outline, size)
    _, image, category, place, crowd, grouped, _, bbox = entry
    mask = CocoMask(image, category, parts or (), place, crowd, grouped, bbox)
    if parts == () and (mask.box or outline is None):
        got = "a box alone" if mask.box else None
        fix = "outline it as a polygon or a mask in the annotation tool, and export again"
        report.add(what, got, "an outline: polygons or run lengths", fix)
        return mask, False
    return mask, parts is not None


def _read_images(report: Report, parsed: dict[str, Any]) -> tuple[dict[int, CocoImage], set[int]]:
    """The sound images by id, and the ids of the broken ones, with a finding for each of these."""
    images: dict[int, CocoImage] = {}
    broken: set[int] = set()
    annotated: set[int] | None = None
    for place, number, entry in _entries(report, parsed, "images"):
        height, width = number_of(entry.get("height")), number_of(entry.get("width"))
        if type(height) is int and type(width) is int and min(height, width) > 0:
            images[number] = CocoImage(place, file_name_of(entry), (height, width))
            continue
        annotated = _annotated(parsed) if annotated is None else annotated
        if (height, width) == (None, None) and number not in annotated:
            # Label Studio's converter: no annotations, and the picture was not found
            images[number] = CocoImage(place, file_name_of(entry), (0, 0))
        else:
            broken.add(number)
            got = height, width
            report.add(f"{place} height, width", got, "two whole numbers above 0", FIX)
    return images, broken


def _read_categories(report: Report, parsed: dict[str, Any]) -> tuple[dict[int, str], set[int]]:
    """The names of sound categories by id, and the ids of the broken ones."""
    categories: dict[int, str] = {}
    broken: set[int] = set()
    for place, number, entry in _entries(report, parsed, "categories"):
        before, name = len(report.findings), _words(entry.get("name"))
        said = as_phrase(report, f"{place}.name", name)
        if said:
            categories[number] = said
            continue
        broken.add(number)
        if len(report.findings) == before:
            report.add(f"{place}.name", name, "a name that is not blank", FIX)
    return categories, broken


def _is_panoptic(parsed: dict[str, Any]) -> bool:
    listed = parsed.get("annotations")
    first = listed[0] if isinstance(listed, list) and listed else None
    return isinstance(first, dict) and "segments_info" in first


def _annotated(parsed: dict[str, Any]) -> set[int]:
    """The ids of images with annotations, valid or not."""
    ids = (id_of(entry, "image_id") for entry in objects(parsed, "annotations"))
    return {number for number in ids if number is not None}


def objects(parsed: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list in the document, valid or not."""
    listed = parsed.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def id_of(entry: dict[str, Any], key: str = "id") -> int | None:
    """The whole number by this key; None for anything else."""
    number = number_of(entry.get(key))
    return number if type(number) is int else None


def _tool(parsed: dict[str, Any]) -> str:
    """The tool that wrote the file, by the name it records or by its typical fields."""
    info, categories = parsed.get("info"), parsed.get("categories")
    if not isinstance(info, dict):
        return ""
    if info.keys() >= _DATUMARO_INFO and not any(info.values()):
        return DATUMARO
    if not info and isinstance(categories, list) and all(
        isinstance(entry, dict) and entry.get("supercategory") == "common-objects"
        for entry in categories
    ):  # fmt: skip
        return SUPERVISION
    return str(info.get("contributor") or "")


def _is_said_to_be_crowd(entry: dict[str, Any], tool: str) -> bool:
    """Whether `iscrowd` 1 has COCO's meaning, rather than any mask that is not one polygon.

    CVAT and Datumaro set it for run lengths, with attributes of their own; supervision sets it for
    masks with holes or several parts.
    """
    attributes = entry.get("attributes")
    if isinstance(attributes, dict):
        return bool(attributes.get("is_crowd"))
    return tool not in (DATUMARO, SUPERVISION)


def file_name_of(entry: dict[str, Any]) -> object:
    """The picture's name. LVIS records only its address: folder and name, train2017/1.jpg."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if name is not None or not isinstance(address, str):
        return name
    try:
        parts = PurePosixPath(unquote(urlsplit(address).path)).parts
    except ValueError:
        return name
    return "/".join(part for part in parts[-2:] if part != "/") or name


def _box(box: object) -> tuple[Part, ...] | None:
    """The outline of an annotation's box; empty for a box of no size, None if there is none."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(x) in (int, float) and abs(x) <= LARGEST_COORDINATE / 2 for x in box):
        return None
    left, top, width, height = map(float, box)
    if min(width, height) <= 0:
        return () if width == height == 0 else None
    right, bottom = left + width, top + height
    return (np.array([left, top, right, top, right, bottom, left, bottom]),)


def paint_parts(
    parts: Sequence[Part], image: CocoImage, source: Path, height: int, width: int
) -> NDArray[np.uint8]:
    """All parts as one mask uint8 [height, width] of {0, 1}.

    Raises DataError, with `source`, if they were drawn on an image of another size.
    """
    if image.size != (height, width):
        report, size = Report(source), image.size
        allowed = f"height {size[0]}, width {size[1]}, as annotated"
        fix = "fetch the picture again, or annotate it as it is upright"
        report.add(f"{image.place}, picture", f"height {height}, width {width}", allowed, fix)
        raise DataError(report.findings)
    return painted(parts, height, width)


def _words(name: object) -> object:
    """A category's name as people say it: LVIS writes trash_can, and bat_(animal)."""
    return re.sub(r"_\([^)]*\)", "", name).replace("_", " ") if isinstance(name, str) else name


def _entries(
    report: Report, parsed: dict[str, Any], key: str
) -> list[tuple[str, int, dict[str, Any]]]:
    """(place, id, entry) of every valid entry of a list; ids are whole numbers, each once."""
    listed = parsed.get(key)
    if not isinstance(listed, list):
        fix = "export the dataset again with it"
        report.add(key, listed, f"the list of all {key}, as COCO's instances have it", fix)
        return []
    found: dict[int, tuple[str, int, dict[str, Any]]] = {}
    for index, entry in enumerate(listed):
        place = f"{key}[{index}]"
        if isinstance(entry, dict) and PLACE in entry:
            place = entry[PLACE]
        number = number_of(entry.get("id")) if isinstance(entry, dict) else None
        if type(number) is not int or number in found:
            report.add(f"{place}.id", number, "a whole number, used only once", FIX)
        else:
            found[number] = (place, number, entry)
    return list(found.values())


def number_of(value: object) -> object:
    """An id or a size; text of digits becomes a number, as VIA writes `image_id`.

    So does a fraction that is a whole number, as tables of numbers with gaps are saved.
    """
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    spelled = isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value)
    return int(spelled[0]) if spelled else value
