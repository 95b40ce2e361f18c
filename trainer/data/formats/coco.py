"""COCO's annotation format: pictures, categories, and masks as polygons or run lengths.

A mask is a list of polygons ``[x1, y1, x2, y2, …]`` in pixels, a run-length encoding ``{size: [H,
W], counts: [n, …] or text}``, or a list of such encodings; an empty list covers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from trainer.data.arrays import FloatArray, Size
from trainer.data.findings import DataError, Report
from trainer.data.json_fields import load_json
from trainer.data.pictures import spoken

# A polygon [2N] of x, y, or run lengths, checked: pycocotools shows whatever is in memory
# where counts and size differ. As arrays, since lists of a million polygons would take gigabytes.
Part: TypeAlias = "FloatArray | dict[str, Any]"
_LARGEST_COORDINATE = 1e6  # pycocotools walks along every edge, pixel by pixel
# Points outside of the picture and edges back and forth included; no outline drawn comes near.
_LONGEST_OUTLINE = 100  # times the picture's height and width together
# Tools that do not name themselves. CVAT exports through Datumaro.
DATUMARO, SUPERVISION = "Datumaro", "supervision"
_DATUMARO_INFO = {"contributor", "date_created", "description", "url", "version", "year"}
PLACE = ("place",)  # key of an entry's place in another tool's file; JSON's keys are all text
_FIX = "correct the annotation or take it out"


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``; `size` is (height, width)."""

    place: str  # in the file
    file_name: object
    size: Size


@dataclass(frozen=True)
class CocoMask:
    """One entry of ``annotations``; a crowd is outlined as a whole.

    `box` outlines its ``bbox``, if that is a box with an inside; None if there is no telling.
    """

    image: int
    category: int
    parts: tuple[Part, ...]
    place: str = ""  # in the file
    crowd: bool = False
    grouped: bool = True  # whether a crowd is said to be one, rather than one painted object
    box: tuple[Part, ...] | None = None


@dataclass(frozen=True)
class Coco:
    """What is in an annotation file, by id.

    `unusable`: annotations without a valid mask, by id. They are findings already; what they cover
    must not be taken for background where they are left out.
    """

    images: dict[int, CocoImage]
    categories: dict[int, str]
    masks: dict[int, CocoMask]
    unusable: dict[int, CocoMask] = field(default_factory=dict)
    tool: str = ""  # what wrote it: info.contributor, DATUMARO or SUPERVISION


def read_coco(report: Report, text_of: Callable[[bytes], str] | None = None) -> Coco:
    """The annotation file at the report's path; a finding for everything invalid.

    `text_of` decodes a file of another tool than COCO's.
    """
    parsed = load_json(report, dict, "{images, annotations, categories}", text_of=text_of)
    return Coco({}, {}, {}) if parsed is None else checked_coco(report, parsed)


def checked_coco(report: Report, parsed: dict[str, Any]) -> Coco:
    """The valid part of COCO's document; a finding for everything else."""
    tool = _tool(parsed)
    images: dict[int, CocoImage] = {}
    # What belongs to a broken entry goes with it, without a finding of its own.
    broken_images, broken_categories = set[int](), set[int]()
    annotated = _annotated(parsed)
    for place, number, entry in _entries(report, parsed, "images"):
        height, width = entry.get("height"), entry.get("width")
        if type(height) is int and type(width) is int and min(height, width) > 0:
            images[number] = CocoImage(place, _file_name(entry), (height, width))
        elif (height, width) == (None, None) and number not in annotated:
            pass  # Label Studio's converter, of a task without annotations whose picture is away
        else:
            broken_images.add(number)
            got = height, width
            report.add(f"{place} height, width", got, "two whole numbers above 0", _FIX)
    categories: dict[int, str] = {}
    for place, number, entry in _entries(report, parsed, "categories"):
        before, name = len(report.findings), _words(entry.get("name"))
        said = spoken(report, f"{place}.name", name)
        if said:
            categories[number] = said
            continue
        broken_categories.add(number)
        if len(report.findings) == before:
            report.add(f"{place}.name", name, "a name that is not blank", _FIX)
    masks: dict[int, CocoMask] = {}
    unusable: dict[int, CocoMask] = {}
    if _is_panoptic(parsed):
        allowed = "instances, each with its segmentation"
        fix = "export the dataset as COCO's instances, not as panoptic"
        report.add("annotations", "COCO's panoptic segments_info", allowed, fix)
        return Coco({}, {}, {})
    for place, number, entry in _entries(report, parsed, "annotations"):
        image, category = _id(entry.get("image_id")), _id(entry.get("category_id"))
        if type(image) is int and image in broken_images:
            continue
        if type(category) is int and category in broken_categories:
            continue
        if type(image) is not int or image not in images:
            report.add(f"{place}.image_id", image, "the id of one of the images", _FIX)
        elif type(category) is not int or category not in categories:
            report.add(f"{place}.category_id", category, "the id of one of the categories", _FIX)
        else:
            what, value = f"{place}.segmentation", entry.get("segmentation")
            parts = _read_parts(report, what, value, images[image].size)
            crowd, box = bool(entry.get("iscrowd")), _box(entry)
            grouped = _is_said_to_be_crowd(entry, tool)
            if parts == () and box:
                report.add(what, value, "an outline of what is in the bbox", _FIX)
                parts = None
            if parts is not None:
                masks[number] = CocoMask(image, category, parts, place, crowd, grouped, box)
            else:
                unusable[number] = CocoMask(image, category, (), place, crowd, grouped, box)
    return Coco(images, categories, masks, unusable, tool)


def _is_panoptic(parsed: dict[str, Any]) -> bool:
    listed = parsed.get("annotations")
    first = listed[0] if isinstance(listed, list) and listed else None
    return isinstance(first, dict) and "segments_info" in first


def _annotated(parsed: dict[str, Any]) -> set[int]:
    """The ids of images with annotations, valid or not."""
    listed = parsed.get("annotations")
    entries = listed if isinstance(listed, list) else []
    ids = [_id(entry.get("image_id")) for entry in entries if isinstance(entry, dict)]
    return {number for number in ids if type(number) is int}


def _tool(parsed: dict[str, Any]) -> str:
    """The tool that wrote the file: by its name in the file, or by traits of its files."""
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
    """Whether `iscrowd` 1 is meant as COCO does, rather than for any mask that is no polygon.

    CVAT and Datumaro write run lengths so, and attributes of their own beside them; supervision
    what has a hole or several parts.
    """
    attributes = entry.get("attributes")
    if isinstance(attributes, dict):
        return bool(attributes.get("is_crowd"))
    return tool not in (DATUMARO, SUPERVISION)


def _file_name(entry: dict[str, Any]) -> object:
    """The picture's name; LVIS gives only its address, by folder and name: train2017/1.jpg."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if name is not None or not isinstance(address, str):
        return name
    try:
        parts = PurePosixPath(unquote(urlsplit(address).path)).parts
    except ValueError:
        return name
    return "/".join(part for part in parts[-2:] if part != "/") or name


def _box(entry: dict[str, Any]) -> tuple[Part, ...] | None:
    """The outline of an annotation's box; empty for a box of no size, None if there is none."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST_COORDINATE / 2 for x in box):
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

    DataError, naming the `source`, if they were drawn on an image of another size.
    """
    if image.size != (height, width):
        report, size = Report(source), image.size
        allowed = f"height {size[0]}, width {size[1]}, as annotated"
        fix = "fetch the picture again, or annotate it as it is upright"
        report.add(f"{image.place}, picture", f"height {height}, width {width}", allowed, fix)
        raise DataError(report.findings)
    (encoded,) = _merged([parts], height, width)
    if encoded is None:
        return np.zeros((height, width), np.uint8)
    painted: NDArray[np.uint8] = coco_mask.decode(encoded)
    return painted


class PaintedBox(NamedTuple):
    """What a mask covers: the rows and columns that contain all of it, and its runs there.

    `runs` go down one of these columns after the other, from top to bottom of the picture, of 0 and
    1 in turn.
    """

    rows: slice = slice(0)
    columns: slice = slice(0)
    runs: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def area(self) -> int:
        """Pixels that are covered."""
        return int(self.runs[1::2].sum())

    def covered(self) -> NDArray[np.bool_]:
        """Of the rows and columns, bool [h, w]."""
        bits = np.zeros(len(self.runs), bool)
        bits[1::2] = True
        across = self.columns.stop - self.columns.start if self.area else 0
        return bits.repeat(self.runs).reshape(max(across, 1), -1).T[self.rows]


def painted_boxes(masks: Sequence[Sequence[Part]], size: Size) -> list[PaintedBox]:
    """What each mask covers, from all of its parts.

    Decoding a whole picture's mask takes thirty times as long as encoding it did; and one call for
    all masks of a picture takes hardly longer than for one.
    """
    height, encoded = size[0], _merged(masks, *size)
    known = [one for one in encoded if one is not None]
    if not known:
        return [PaintedBox()] * len(masks)
    boxes = iter(coco_mask.toBbox(known).astype(int).tolist())
    all_lengths = iter(_lengths([one["counts"] for one in known]))
    found = []
    for one in encoded:
        if one is None:
            found.append(PaintedBox())
            continue
        left, top, across, down = next(boxes)
        start, end = left * height, (left + across) * height
        ends = np.minimum(np.maximum(next(all_lengths).cumsum(), start), end)
        runs = np.concatenate((ends[:1] - start, ends[1:] - ends[:-1]))
        found.append(PaintedBox(slice(top, top + down), slice(left, left + across), runs))
    return found


def _merged(
    masks: Sequence[Sequence[Part]], height: int, width: int
) -> list[dict[str, Any] | None]:
    """pycocotools' encoding of all parts of each mask as one; None for a mask without any."""
    outlines = [part.tolist() for parts in masks for part in parts if isinstance(part, np.ndarray)]
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


def _words(name: object) -> object:
    """A category's name as one says it: LVIS writes trash_can, and bat_(animal) of one bat."""
    return re.sub(r"_\([^)]*\)", "", name).replace("_", " ") if isinstance(name, str) else name


def _entries(
    report: Report, parsed: dict[str, Any], key: str
) -> list[tuple[str, int, dict[str, Any]]]:
    """(place, id, entry) of every valid entry of a list; ids are whole numbers, each once."""
    listed = parsed.get(key)
    if not isinstance(listed, list):
        report.add(key, listed, "a list of objects", "correct the file")
        return []
    found: dict[int, tuple[str, int, dict[str, Any]]] = {}
    for index, entry in enumerate(listed):
        place = f"{key}[{index}]"
        if isinstance(entry, dict) and PLACE in entry:
            place = entry[PLACE]
        number = _id(entry.get("id")) if isinstance(entry, dict) else None
        if type(number) is not int or number in found:
            report.add(f"{place}.id", number, "a whole number, used only once", _FIX)
        else:
            found[number] = (place, number, entry)
    return list(found.values())


def _id(value: object) -> object:
    """An id, or the number that a text spells: VIA wrote `image_id` so."""
    spelled = isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value)
    return int(spelled[0]) if spelled else value


def _read_parts(report: Report, what: str, value: object, size: Size) -> tuple[Part, ...] | None:
    """The checked parts of a segmentation; None with a finding added."""
    parts = [value] if isinstance(value, dict) or _is_polygon(value) else value
    if not isinstance(parts, list):
        report.add(what, value, "polygons or run lengths", _FIX)
        return None
    checked: list[Part] = []
    for part in parts:
        if _is_polygon(part) and (outline := _short_enough(part, size)) is not None:
            checked.append(outline)
        elif (runs := _checked_runs(part, size)) is not None:
            checked.append(runs)
        else:
            allowed = (
                "a polygon of 3 points [x, y] or more in one list, with coordinates of at most "
                f"{_LARGEST_COORDINATE:.0f} and edges of at most {_LONGEST_OUTLINE} times height "
                f"and width together, or run lengths; the picture has height {size[0]}, "
                f"width {size[1]}"
            )
            report.add(what, part, allowed, _FIX)
            return None
    return tuple(checked)


def _is_polygon(part: object) -> bool:
    # Of four numbers pycocotools would make a box.
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and {int, float}.issuperset(map(type, part))
        # NaN is never below; a whole number is compared as it is, since it may not fit a float.
        and all(map(_LARGEST_COORDINATE.__ge__, map(abs, part)))
    )


def _short_enough(part: list[float], size: Size) -> FloatArray | None:
    """The polygon [2N]; None if walking along its edges would take seconds and gigabytes."""
    points, most = np.array(part, dtype=np.float64), _LONGEST_OUTLINE * sum(size)
    if len(part) * (max(part) - min(part)) <= most:  # no edge is longer
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
    return part


def _lengths(texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
    """The lengths in each of some valid texts of COCO's, as `_unpacked` gives them, at once."""
    digits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 31) << 5 * place, first)
    values -= np.where(digits[last] & 16, 1 << 5 * (last - first + 1), 0)
    ends = np.searchsorted(last, np.cumsum([len(text) for text in texts]))
    found = [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    for lengths in found:
        lengths[1::2] = lengths[1::2].cumsum()
        lengths[2::2] = lengths[2::2].cumsum()
    return found


def _unpacked(counts: bytes) -> list[int]:
    """The lengths in COCO's text: five bits a character, the lowest first.

    From the fourth on a length is given as its difference to the last but one. Empty for a text
    that breaks off, or that pycocotools would not have written.
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
