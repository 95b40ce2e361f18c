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
_BINARY = (".p", ".pkl", ".pickle", ".mat", ".npy", ".npz", ".parquet", ".arrow", ".h5", ".hdf5",
           ".tfrecord", ".bin", ".nii", ".dcm")  # fmt: skip
MAY_BE_FOREIGN = frozenset((*_BINARY, ".geojson", ".manifest",
                            ".xml", ".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".yaml", ".yml",
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
_DATA = "docs/data.md says where lisa-train reads it as it is"
# (pattern of its beginning, its name, what to export instead): the first that fits
_KINDS = (
    (r"\s*<(?=.*<polygon>)(.*<)?annotation\b", "XML of LabelMe's web tool",
     f"in CVAT, export the dataset as COCO 1.0; else export {_COCO}"),
    (r"\s*<(.*<)?annotations\b", "CVAT's XML", "in CVAT, export the dataset as COCO 1.0"),
    (r"\s*<(.*<)?annotation\b", "Pascal VOC's XML, which has boxes", f"export {_COCO}"),
    (r"\s*<", "XML", f"export {_COCO}"),
    (r'\s*\{\s*"annotation"\s*:\s*\{', "ADE20K's own JSON",
     f"take its 150 classes (SceneParsing), {_DATA}; or convert it to {_COCO}"),
    (r'\s*\{\s*("project"\s*:\s*\{\s*"pid"|(?=.*"config"\s*:\s*\{)(?=.*"fname"\s*:))',
     "a project of VIA 3", f"export {_COCO}, or draw in VIA 2, which exports it"),
    (r'\s*\{\s*("_via_|"[^"]*"\s*:\s*\{\s*"(fileref|filename)")',
     "a project or the JSON of VIA (VGG Image Annotator)",
     "in VIA, choose Annotation, Export Annotations (COCO format)"),
    (r"(#?\s*)?filename,file_size,", "VIA's CSV",
     "in VIA, choose Annotation, Export Annotations (COCO format)"),
    (r'\s*\{.*"(dm_format_version|media_type)"', "Datumaro's own JSON",
     "export the dataset as coco_instances"),
    (r'\s*\{(?=.*"tags"\s*:)(?=.*"size"\s*:\s*\{)(?=.*"objects"\s*:)', "Supervisely's JSON",
     "in Supervisely, export the project as COCO"),
    (r'\s*\{(?=.*"item"\s*:\s*\{)(?=.*"slots"\s*:|.*"annotations"\s*:)'
     r'|\s*\{(?=.*"image"\s*:\s*\{)(?=.*"(original_filename|workview_url)"\s*:)',
     "V7's Darwin JSON", "in V7, export the dataset as COCO, or: darwin convert coco FILES FOLDER"),
    (r'\s*\[?\s*\{(?=.*"metadata"\s*:\s*\{)(?=.*"instances"\s*:)', "SuperAnnotate's JSON",
     f"convert it to {_COCO}"),
    (r'\s*\[\s*\{(?=.*"(DataRow ID|Labeled Data)"\s*:)', "Labelbox's older export",
     f"convert it to {_COCO}"),
    (r'\s*\{(?=.*"(label_classes|export_format_version)"\s*:)', "Hasty's JSON",
     "in Hasty, export as COCO"),
    (r'\s*\[\s*\{(?=.*"(externalId|jsonResponse)"\s*:)', "Kili's JSON", "in Kili, export as COCO"),
    (r'\s*\[\s*\{(?=.*"task_id"\s*:)(?=.*"response"\s*:)', "Scale's tasks",
     f"convert them to {_COCO}"),
    (r'\s*\[\s*\{(?=.*"(poly2d|box2d)"\s*:)', "JSON of BDD100K or Scalabel",
     "convert it to COCO with the scripts of BDD100K"),
    (r'\s*\{(?=.*"dataset"\s*:\s*\{)(?=.*"(task_type|samples)"\s*:)', "Segments.ai's release",
     f"export {_COCO} with its SDK"),
    (r'\s*\{\s*("samples"\s*:\s*\[|"classes"\s*:\s*[\[{](?=.*"labels"\s*:\s*\{))',
     "FiftyOne's JSON", "export as COCO from FiftyOne, with the segmentations"),
    (r'\s*\{\s*"image"\s*:\s*\{\s*"image_id"', "SA-1B's JSON, whose masks have no labels", _OWN),
    (r'\s*\[\s*\{(?=.*"image(filename)?"\s*:)(?=.*"coordinates"\s*:\s*\{)',
     "CreateML's JSON, which has boxes", f"export {_COCO}"),
    (r'\s*\{(?=.*"annotations"\s*:)(?=.*"coordinates"\s*:\s*\[\s*[\[{])(?!.*"images"\s*:)',
     "Dataloop's JSON", f"convert it to {_COCO}"),
    (r'\s*\{\s*"openlabel"', "OpenLABEL's JSON", f"convert it to {_COCO}"),
    (r'\s*\{\s*"source-ref"', "a manifest of SageMaker Ground Truth", f"convert it to {_COCO}"),
    (r'\s*\{\s*"type"\s*:\s*"dataset"', "Ultralytics' NDJSON", "export the YOLO folder"),
    (r'\s*\[\s*\{(?=.*"ref_id"\s*:)(?=.*"(ann_id|sentences)"\s*:)', "RefCOCO's references",
     _DATA),
    (r'\s*\[\s*\{(?=.*"conversations"\s*:)', "LLaVA's dialogues, which have no outlines", _DATA),
    (r'\s*\[\s*\{(?=.*"image_id"\s*:)(?=.*"category_id"\s*:)',
     "COCO's results, without pictures and categories", "name the file of instances"),
    (r'\s*\{\s*"info"\s*:\s*\{\s*"description"\s*:\s*"ISAT"', "ISAT's JSON",
     "in ISAT, convert it to COCO"),
    (r'\s*\{\s*"data_row"', "Labelbox's export", f"convert it to {_COCO}"),
    (r'\s*(\{.*"type"\s*:\s*"FeatureCollection"|\[\s*\{\s*"type"\s*:\s*"Feature")', "GeoJSON",
     _OWN),
    (r'\s*[\[{].*"(imgHeight|data_units|label_hash)"\s*:', "JSON of Cityscapes or Encord",
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
    if report.path.suffix.lower() in _BINARY:
        fix = _DATA if report.path.suffix == ".p" else _OWN  # RefCOCO's references
        report.add("file", f"a binary file ({report.path.suffix})", READ, fix)
        return True
    head = start.decode("utf-8-sig", "ignore").lstrip()
    if '"shapes"' in head:  # LabelMe's, of which a folder may have a hundred thousand
        return False
    for pattern, what, fix in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            report.add("file", what, READ, fix)
            return True
    return False
