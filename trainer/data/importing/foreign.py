"""Recognises files of tools that are not supported, and says what to export instead."""

from __future__ import annotations

import re

from trainer.data.findings import Report
from trainer.data.images import PICTURE_SUFFIXES

READ = "LabelMe's files, COCO's instances, Label Studio's JSON, or Sa2VA's annotations"
_HEAD_BYTES = 4096
_COCO = "polygons and masks as COCO's instances"
_FROM_YOLO = "export the dataset again as COCO; Roboflow, CVAT and Label Studio all do"
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
    (r"PK\x03\x04", "a ZIP", "unpack it, and name the folder or the file of annotations in it"),
    (r"\d+( -?\d*\.\d+| [01]){4,}\s*(\n|$)", "YOLO's labels", _FROM_YOLO),
    (r"(.*\n)?(nc\s*:\s*\d|names\s*:\s*(\[|\n))", "YOLO's data.yaml", _FROM_YOLO),
)  # fmt: skip


def is_foreign(report: Report) -> bool:
    """Whether the file at the report's path is of a known unsupported kind: a finding then."""
    try:
        with report.path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8-sig", "ignore")
    except OSError:
        return False  # reported by its reader
    if report.path.suffix.lower() in PICTURE_SUFFIXES:
        report.add("file", "a picture", READ, "name its annotations, or the folder that has them")
        return True
    for pattern, what, fix in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            report.add("file", what, READ, fix)
            return True
    return False
