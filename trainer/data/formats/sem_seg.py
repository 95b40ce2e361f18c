"""Reads semantic segmentation, in COCO's format or as pictures of class numbers.

On disk: ``ROOT/ade20k/`` and any ``ROOT/sem_seg/NAME/``. A folder with ``annotations.json`` is in
COCO's format, its pictures in ``images/``; all annotations of a category in a picture are one
mask. Any other is laid out as ADE20K, COCO-Stuff or Mapillary Vistas, whichever file of names it
has (see LAYOUTS), with pictures of 8 bits a pixel. 255 is ignored everywhere, and so is a class
with a number but without a usable name.

Classes of the same name are merged. Pictures without classes are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.files import read_regular
from trainer.data.findings import DataError, Finding, Report
from trainer.data.formats.coco import paint_parts, read_coco
from trainer.data.formats.coco_masks import Part
from trainer.data.images import IMAGE_SUFFIXES, PICTURE_SUFFIXES, open_image
from trainer.data.json_fields import load_json
from trainer.data.picture_paths import PictureSearch
from trainer.data.pictures import DataSet, Scanned, SegmentedPicture, Target, as_phrase
from trainer.data.polygons import IGNORE


def read(root: Path, limit: int | None = None) -> Scanned:
    """The data sets found, each with its first `limit` pictures, and every finding."""
    others = sorted((root / "sem_seg").iterdir()) if (root / "sem_seg").is_dir() else []
    # Folders that macOS and notebooks leave are not data sets.
    others = [folder for folder in others if folder.name[0] != "." and folder.name != "__MACOSX"]
    sets: list[DataSet] = []
    findings: list[Finding] = []
    for folder in (root / "ade20k", *others):
        if folder.is_dir():
            in_coco = (folder / "annotations.json").exists()
            read_set = _read_coco_set if in_coco else _read_numbered_set
            pictures = read_set(folder, limit, findings)
            labels = [Path(picture.where) for picture in pictures]
            files = [folder / "annotations.json"] if in_coco else [_names_file(folder), *labels]
            name = folder.relative_to(root).as_posix()
            sets.append(DataSet(name, pictures, annotations=files))
    return sets, findings


def _layout(folder: Path) -> _Layout:
    return next((known for known in LAYOUTS if (folder / known.names).exists()), LAYOUTS[0])


def _names_file(folder: Path) -> Path:
    """The file that names the classes of a set of class numbers."""
    return folder / _layout(folder).names


def _read_coco_set(
    folder: Path, limit: int | None, findings: list[Finding]
) -> list[SegmentedPicture]:
    report = Report(folder / "annotations.json", findings)
    coco = read_coco(report)
    by_image: dict[int, dict[str, list[Part]]] = {}
    for mask in coco.masks.values():
        named = by_image.setdefault(mask.image, {})
        named.setdefault(coco.categories[mask.category], []).extend(mask.parts)
    # A category with a broken mask is left out whole: its answer would be incomplete.
    for mask in coco.unusable.values():
        if mask.box != ():
            by_image.get(mask.image, {}).pop(coco.categories[mask.category], None)
    by_image = {number: named for number, named in by_image.items() if named}
    pictures = []
    names = [image.file_name for image in coco.images.values()]
    search = PictureSearch([folder / "images"], strict=True, recorded=names)
    for number in [number for number in coco.images if number in by_image][:limit]:
        image = coco.images[number]
        placed = search.find(report, f"{image.place}.file_name", image.file_name)
        if placed is not None:
            path = placed[0]
            where = f"{report.path}: {image.place}"
            targets = tuple(
                Target(_phrases(name), partial(paint_parts, parts, image, report.path))
                for name, parts in by_image[number].items()
            )
            pictures.append(SegmentedPicture(path.stem, path, where, targets))
    return pictures


def _read_numbered_set(
    folder: Path, limit: int | None, findings: list[Finding]
) -> list[SegmentedPicture]:
    layout = _layout(folder)
    names = layout.read_names(Report(folder / layout.names, findings))
    labels = folder / layout.labels
    paths = sorted(path for path in labels.glob("*.png") if not path.name.startswith("."))
    if not paths:
        what = "pictures of class numbers, .png"
        Report(labels, findings).add("folder", None, what, "fetch the data set again")
    with ThreadPoolExecutor() as threads:  # Pillow releases Python's lock to decode
        read_all = partial(_read_numbered, folder / layout.images, names)
        read_one = list(threads.map(read_all, paths[:limit]))
    findings += [finding for _, found in read_one for finding in found]
    return [picture for picture, _ in read_one if picture is not None]


def _read_numbered(
    images: Path, names: Mapping[int, str], label: Path
) -> tuple[SegmentedPicture | None, list[Finding]]:
    """A picture with the classes in it; None if there are none, or with findings."""
    report = Report(label, entry=str(label))
    for kinds in (IMAGE_SUFFIXES, sorted(PICTURE_SUFFIXES)):
        found = [path for kind in kinds if (path := images / f"{label.stem}{kind}").is_file()]
        if found:
            break
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        allowed = f"one picture {label.stem} in {images}"
        report.add("picture", got, allowed, "add it or remove what is amiss")
    opened = open_image(report, _class_numbers)
    first = Report(found[0], report.findings, report.entry) if found else None
    shown = open_image(first, lambda image: None) if first else None
    if opened is None or shown is None:
        return None, report.findings
    numbers = opened[1]
    if numbers is None:
        report.add("picture of class numbers", "another mode", "8 bits a pixel", "convert it")
        return None, report.findings
    if numbers.shape != shown[0]:
        got, allowed = (f"height {h}, width {w}" for h, w in (numbers.shape, shown[0]))
        report.add("size", got, f"{allowed}, as {found[0].name}", "fetch both again")
    present = [int(n) for n in np.flatnonzero(np.bincount(numbers.ravel(), minlength=256))]
    unnamed = [n for n in present if n not in names]
    if unnamed and names:
        report.add("class numbers", unnamed, "those in the file of names", "name them there")
    if report.findings:
        return None, report.findings
    together: dict[str, list[int]] = {}
    for number in present:
        if names.get(number):
            together.setdefault(names[number], []).append(number)
    ignored = tuple(number for number, name in names.items() if not name)
    targets = tuple(
        Target((name,), partial(_paint_classes, label, tuple(those), ignored))
        for name, those in together.items()
    )
    picture = SegmentedPicture(label.stem, found[0], str(label), targets)
    return (picture if targets else None), []


def _class_numbers(image: Image.Image) -> NDArray[np.uint8] | None:
    """uint8 [H, W]; None if it is not one byte a pixel."""
    return np.array(image) if image.mode in ("L", "P") else None


def _paint_classes(
    label: Path, those: tuple[int, ...], ignored: tuple[int, ...], height: int, width: int
) -> NDArray[np.uint8]:
    """uint8 [height, width]: 1 where the class is one of `those`, 255 where one of `ignored`."""
    report = Report(label)
    opened = open_image(report, _class_numbers)
    if opened is None:
        raise DataError(report.findings)
    numbers = opened[1]
    if numbers is None or numbers.shape != (height, width):
        report.add("picture of class numbers", "changed since it was read", "the same", "run again")
        raise DataError(report.findings)
    values = np.zeros(256, np.uint8)  # by class number
    values[list(those)], values[list(ignored)] = 1, IGNORE
    return values[numbers]


def _phrases(name: str) -> tuple[str, ...]:
    """The phrases for a category; PACO and Pascal-Part write bottle:cap for a part."""
    whole, _, part = (text.strip() for text in name.partition(":"))
    return (f"{whole} {part}", f"{part} of the {whole}") if whole and part else (name,)


def _ade20k_names(report: Report) -> dict[int, str]:
    """Names by class number, '' for what is ignored; empty with a finding added."""
    names: dict[int, str] = {}
    try:
        text = read_regular(report.path).decode("utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        allowed = "a table in UTF-8 with the columns Idx and Name"
        report.add("file", error, allowed, "fetch it again")
        return names
    for place, row in enumerate(rows, start=2):
        number, name = row.get("Idx") or "", row.get("Name") or ""
        said = as_phrase(report, f"line {place}, Name", name.replace(";", ",").split(",")[0])
        if not number.strip().isdecimal() or not 0 < int(number) < 256 or said is None:
            allowed = "Idx from 1 to 255, and Name, with tabs between"
            report.add(f"line {place}", f"{number!r}, {name!r}", allowed, "correct the line")
        else:
            names[int(number)] = said
    if not rows:
        report.add("file", "no row", "a table with the columns Idx and Name", "fetch it again")
    return names and {0: "", 255: "", **names}


def _cocostuff_names(report: Report) -> dict[int, str]:
    """Its labels are numbered from 1, the values in its pictures from 0.

    As in LISA, classes such as wall-brick, door-stuff and food-other are not asked for: nobody says
    these names, and without their endings they would mean more than the class.
    """
    allowed = "lines such as 1: person, with numbers up to 255"
    try:
        lines = read_regular(report.path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        report.add("file", error, allowed, "fetch it again")
        return {}
    before, names = len(report.findings), dict[int, str]()
    for place, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9]+): (.+)", line)
        if match is None or int(match[1]) > 255:
            if line.strip():
                report.add(f"line {place}", line, allowed, "fetch it again")
        elif number := int(match[1]):
            name = match[2]
            names[number - 1] = "" if "-" in name else as_phrase(report, f"{number}", name) or ""
    if len(report.findings) > before:
        return {}
    return names and {**names, 255: ""}


def _mapillary_names(report: Report) -> dict[int, str]:
    """The name of the n-th label, from 0, is its `readable`."""
    labels = (load_json(report, dict, "an object with labels") or {}).get("labels")
    listed = labels if isinstance(labels, list) else []
    named = [label.get("readable") if isinstance(label, dict) else None for label in listed]
    if not 0 < len(named) <= 255 or not all(isinstance(name, str) for name in named):
        report.add("labels", labels, "1 to 255 objects with a readable name", "fetch it again")
        return {}
    said = [as_phrase(report, f"labels[{n}].readable", name) or "" for n, name in enumerate(named)]
    return {255: "", **{n: "" if name == "unlabeled" else name for n, name in enumerate(said)}}


@dataclass(frozen=True)
class _Layout:
    """The places of a data set's class names, pictures, and pictures of class numbers."""

    names: str
    images: str
    labels: str
    read_names: Callable[[Report], dict[int, str]]


LAYOUTS = (
    _Layout("objectInfo150.txt", "images/training", "annotations/training", _ade20k_names),
    _Layout("labels.txt", "images/train2017", "annotations/train2017", _cocostuff_names),
    _Layout("config_v2.0.json", "training/images", "training/v2.0/labels", _mapillary_names),
)
