"""Reads referring segmentation: RefCLEF, RefCOCO, RefCOCO+ and RefCOCOg as published.

On disk: ``ROOT/refer_seg/{refclef,refcoco,refcoco+,refcocog}/`` with ``instances.json`` (COCO's
format) and ``refs(unc).p``, of refcocog ``refs(umd).p``; pictures in
``ROOT/refer_seg/images/mscoco/images/train2014``, of refclef in ``…/images/saiapr_tc-12``. Only
references of the training split are read. The pickles hold plain values: no code in them runs.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from profiles.files import read_regular
from trainer.data.findings import Finding, Report
from trainer.data.formats.coco import Coco, CocoMask, paint_parts, read_coco
from trainer.data.picture_paths import picture_in
from trainer.data.pictures import DataSet, Scanned, SegmentedPicture, Target, as_phrase

SPLIT_BY = {"refclef": "unc", "refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
IMAGES = {"refclef": "images/saiapr_tc-12"}
COCO_IMAGES = "images/mscoco/images/train2014"
_FIX = "fetch the data set again"


def read(root: Path, limit: int | None = None) -> Scanned:
    """The data sets found, each with its first `limit` pictures, and every finding."""
    folder = root / "refer_seg"
    sets: list[DataSet] = []
    findings: list[Finding] = []
    for name in SPLIT_BY:
        if (folder / name).is_dir():
            data_set = _read_set(folder, name, limit, findings)
            if data_set is not None:
                sets.append(data_set)
    return sets, findings


def _read_set(
    folder: Path, name: str, limit: int | None, findings: list[Finding]
) -> DataSet | None:
    """The pictures with references; None with a finding if none of the pictures exists."""
    listed = Report(folder / name / "instances.json", findings)
    coco = read_coco(listed)
    report = Report(folder / name / f"refs({SPLIT_BY[name]}).p", findings)
    by_image: dict[int, list[Target]] = {}
    for index, reference in enumerate(read_references(report)):
        place = f"[{index}]"
        if not isinstance(reference, dict):
            report.add(place, reference, "a dictionary", _FIX)
        elif reference.get("split") == "train" and (mask := _mask(report, place, reference, coco)):
            phrases = _phrases(report, place, reference)
            image = coco.images[mask.image]
            target = Target(phrases, partial(paint_parts, mask.parts, image, listed.path))
            by_image.setdefault(mask.image, []).append(target)
    images = folder / IMAGES.get(name, COCO_IMAGES)
    pictures: list[SegmentedPicture] = []
    before = len(findings)
    for number in list(by_image)[:limit]:
        image = coco.images[number]
        path = picture_in(listed, f"{image.place}.file_name", image.file_name, images)
        if path is not None:
            where = f"{listed.path}: {image.place}"
            pictures.append(SegmentedPicture(path.stem, path, where, tuple(by_image[number])))
    if by_image and not pictures:
        # One finding for thousands: the pictures are downloaded separately from the references.
        del findings[before:]
        fix = f"unpack its pictures there, or remove the folder {folder / name} to train without it"
        missing = Report(images, findings, entry=str(folder / name))
        allowed = f"the pictures of {name}"
        missing.add("pictures", f"none of the {len(by_image)} that are asked about", allowed, fix)
        return None
    return DataSet(f"refer_seg/{name}", pictures, annotations=(listed.path, report.path))


def _mask(report: Report, place: str, reference: dict[Any, Any], coco: Coco) -> CocoMask | None:
    number = reference.get("ann_id")
    if type(number) is not int:  # a pickle may have a dictionary there
        number = None
    mask = None if number is None else coco.masks.get(number)
    if mask is None and number not in coco.unusable:
        allowed = "the id of a valid annotation in instances.json"
        report.add(f"{place}.ann_id", reference.get("ann_id"), allowed, _FIX)
    return mask


def _phrases(report: Report, place: str, reference: dict[Any, Any]) -> tuple[str, ...]:
    """The phrases for the target; blank ones among others are ignored."""
    listed, before = reference.get("sentences"), len(report.findings)
    sentences = listed if isinstance(listed, list) else []
    said = [
        as_phrase(
            report, f"{place}.sentences[{n}].sent", s.get("sent") if isinstance(s, dict) else s
        )
        for n, s in enumerate(sentences)
    ]
    phrases = tuple(phrase for phrase in said if phrase is not None)
    if not phrases and len(report.findings) == before:
        report.add(f"{place}.sentences", listed, "a list with one that is not blank", _FIX)
    return phrases


class _PlainValues(pickle._Unpickler):
    """Unpickles lists, dictionaries, text and numbers, and refuses any call.

    The pure Python unpickler: the one in C allocates whatever memo size a file of a few bytes asks
    for.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_references(report: Report) -> list[Any]:
    """The list in the pickle at the report's path; empty with a finding added."""
    try:
        # UTF-8 for strings that Python 2 wrote as bytes.
        found = _PlainValues(io.BytesIO(read_regular(report.path)), encoding="utf-8").load()
        if isinstance(found, list):
            return found
        report.add("file", found, "a pickled list of plain values", _FIX)
    except Exception as error:  # damaged pickles raise nearly anything
        report.add("file", error, "a pickled list of plain values", _FIX)
    return []
