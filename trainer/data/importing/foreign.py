"""Recognises files of tools that are not supported, and says what to export instead."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.data.findings import Report
from trainer.data.images import PICTURE_SUFFIXES

READ = ("LabelMe's files, COCO's instances, YOLO's folder of outlines, Label Studio's JSON, or "
        "Sa2VA's annotations")  # fmt: skip
_HEAD_BYTES = 4096
_COCO = "polygons and masks as COCO's instances"
_YOLO = "name the folder that holds both data.yaml (or classes.txt) and the labels"
# Suffixes of files that may be such, in lower case.
MAY_BE_FOREIGN = frozenset((".xml", ".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".yaml", ".yml",
                            ".txt", ".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".tbz2",
                            ".xz", ".txz", ".zst"))  # fmt: skip
_ARCHIVES = {b"PK\x03\x04": "a ZIP", b"Rar!\x1a\x07": "a RAR",
             b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"\x1f\x8b": "a gzip archive",
             b"BZh": "a bzip2 archive",
             b"\xfd7zXZ\0": "an xz archive", b"\x28\xb5\x2f\xfd": "a zstd archive"}  # fmt: skip
_TAR = slice(257, 262)
_TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")
_LINES = (".jsonl", ".ndjson")
# For what no tool's reader knows: the simplest of what is read.
_OWN = f"export {_COCO}, or write Sa2VA's list of image, mask and text from it"
# (pattern of its beginning, its name, what to export instead)
_KINDS = (
    (r"\s*<(.*<)?annotations\b", "CVAT's XML", "in CVAT, export the dataset as COCO 1.0"),
    (r"\s*<(.*<)?annotation\b", "Pascal VOC's XML, which has boxes", f"export {_COCO}"),
    (r"\s*<", "XML", f"export {_COCO}"),
    (r'\s*\{\s*("_via_|"[^"]*"\s*:\s*\{\s*"(fileref|filename)")',
     "a project or the JSON of VIA (VGG Image Annotator)",
     "in VIA, choose Annotation, Export Annotations (COCO format)"),
    (r"(#?\s*)?filename,file_size,", "VIA's CSV",
     "in VIA, choose Annotation, Export Annotations (COCO format)"),
    (r'\s*\{.*"(dm_format_version|media_type)"', "Datumaro's own JSON",
     "export the dataset as coco_instances"),
    (r'\s*\{(?=.*"tags"\s*:)(?=.*"size"\s*:\s*\{)(?=.*"objects"\s*:)', "Supervisely's JSON",
     "in Supervisely, export the project as COCO"),
    (r'\s*\{(?=.*"item"\s*:\s*\{)(?=.*"slots"\s*:|.*"annotations"\s*:)', "V7's Darwin JSON",
     "in V7, export the dataset as COCO"),
    (r'\s*\{\s*"info"\s*:\s*\{\s*"description"\s*:\s*"ISAT"', "ISAT's JSON",
     "in ISAT, convert it to COCO"),
    (r'\s*\{\s*"data_row"', "Labelbox's export", f"convert it to {_COCO}"),
    (r'\s*\{.*"type"\s*:\s*"FeatureCollection"', "GeoJSON", _OWN),
    (r'\s*\{.*"(imgHeight|data_units)"\s*:', "JSON of Cityscapes or Encord",
     f"convert it to {_COCO}"),
    (r"\d+( -?\d*\.\d+| [01]){4,}\s*(\n|$)", "YOLO's labels", _YOLO),
    (r"(.*\n)?(nc\s*:\s*\d|names\s*:\s*(\[|\n))", "YOLO's data.yaml", _YOLO),
)  # fmt: skip


def is_other(report: Report) -> bool:
    """Whether the file is no JSON, or of a known unsupported kind: a finding then."""
    if is_foreign(report):
        return True
    suffix, head = report.path.suffix.lower(), _start(report.path).decode("utf-8-sig", "ignore")
    if suffix in (*_TABLES, *_LINES) and re.search(r"\bquestion\b", head, re.IGNORECASE):
        fix = "name it with --questions, and the annotations as SRC"
        report.add("file", "a file of questions", READ, fix)
    elif suffix in _TABLES:
        report.add("file", "a table", READ, _OWN)
    elif suffix in _LINES:
        report.add("file", "JSON lines", READ, f"put all lines into one list; or {_OWN}")
    elif suffix != ".json" and head.strip() and head.lstrip()[0] not in "{[":
        report.add("file", f"{suffix or 'a file without a suffix'}, no JSON", READ, _OWN)
    else:
        return False
    return True


def _start(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, which its reader reports."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def is_foreign(report: Report) -> bool:
    """Whether the file at the report's path is of a known unsupported kind: a finding then."""
    start = _start(report.path)
    if report.path.suffix.lower() in PICTURE_SUFFIXES:
        report.add("file", "a picture", READ, "name its annotations, or the folder that has them")
        return True
    archive = next((what for mark, what in _ARCHIVES.items() if start.startswith(mark)), None)
    if archive and report.path.suffix.lower() in _TABLES:  # .xlsx is a ZIP
        report.add("file", "a table", READ, _OWN)
        return True
    if archive or start[_TAR] == b"ustar":
        fix = "unpack it, and name the folder or the file of annotations in it"
        report.add("file", archive or "a tar archive", READ, fix)
        return True
    head = start.decode("utf-8-sig", "ignore")
    for pattern, what, fix in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            report.add("file", what, READ, fix)
            return True
    return False
