"""Kinds of files that are recognised but not read: how each begins, and what to export instead.

Patterns are for a head without white space before it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_COCO = "polygons and masks as COCO's instances"
_YOLO = "name the folder that holds both data.yaml (or classes.txt) and the labels"
# For what no tool's reader knows: the simplest of what is read.
OWN = f"export {_COCO}, or write Sa2VA's list of image, mask and text from it"
DATA = "docs/data.md says where lisa-train reads it as it is"
_CONVERT = f"convert it to {_COCO}"
_VIA = "in VIA, choose Annotation, Export Annotations (COCO format)"


class Kind(NamedTuple):
    """Files that begin in one of some ways, what they are, and what to export instead."""

    pattern: re.Pattern[str]
    name: str
    fix: str


def _json(begins: str, *has: str) -> str:
    """The pattern of JSON that begins so and has all of these in its head, spaced in any way."""
    return _spaced(begins) + "".join(rf"(?=.*{_spaced(text)})" for text in has)


def _spaced(text: str) -> str:
    marks = re.findall(r"[{\[:]|[^{\[:]+", text)
    return r"\s*".join(re.escape(one) if one in "{[:" else one for one in marks)


# (ways to begin, the kind's name, what to export instead): the first that fits
_TABLE: tuple[tuple[list[str], str, str], ...] = (
    ([r"<(?=.*<polygon>)(.*<)?annotation\b"], "XML of LabelMe's web tool",
     f"in CVAT, export the dataset as COCO 1.0; else export {_COCO}"),
    ([r"<(.*<)?annotations\b"], "CVAT's XML", "in CVAT, export the dataset as COCO 1.0"),
    ([r"<(.*<)?annotation\b"], "Pascal VOC's XML, which has boxes", f"export {_COCO}"),
    ([r"<"], "XML", f"export {_COCO}"),
    ([_json('{"annotation":{')], "ADE20K's own JSON",
     f"take its 150 classes (SceneParsing), {DATA}; or {_CONVERT}"),
    ([_json('{"project":{"pid"'), _json("{", '"config":{', '"fname":')], "a project of VIA 3",
     f"export {_COCO}, or draw in VIA 2, which exports it"),
    ([_json('{"_via_'), r'\{\s*"[^"]*"\s*:\s*\{\s*"(fileref|filename)"'],
     "a project or the JSON of VIA (VGG Image Annotator)", _VIA),
    ([r"(#?\s*)?filename,file_size,"], "VIA's CSV", _VIA),
    ([_json("{", '"(dm_format_version|media_type)"')], "Datumaro's own JSON",
     "export the dataset as coco_instances"),
    ([_json("{", '"tags":', '"size":{', '"objects":')], "Supervisely's JSON",
     "in Supervisely, export the project as COCO"),
    ([_json("{", '"item":{', '"(slots|annotations)":'),
      _json("{", '"image":{', '"(original_filename|workview_url)":')],
     "V7's Darwin JSON", "in V7, export the dataset as COCO, or: darwin convert coco FILES FOLDER"),
    ([_json("{", '"metadata":{', '"instances":'), _json("[{", '"metadata":{', '"instances":')],
     "SuperAnnotate's JSON", _CONVERT),
    ([_json("[{", '"(DataRow ID|Labeled Data)":')], "Labelbox's older export", _CONVERT),
    ([_json("{", '"(label_classes|export_format_version)":')], "Hasty's JSON",
     "in Hasty, export as COCO"),
    ([_json("[{", '"(externalId|jsonResponse)":')], "Kili's JSON", "in Kili, export as COCO"),
    ([_json("[{", '"task_id":', '"response":')], "Scale's tasks", f"convert them to {_COCO}"),
    ([_json("[{", '"(poly2d|box2d)":')], "JSON of BDD100K or Scalabel",
     "convert it to COCO with the scripts of BDD100K"),
    ([_json("{", '"dataset":{', '"(task_type|samples)":')], "Segments.ai's release",
     f"export {_COCO} with its SDK"),
    ([_json('{"samples":['), *(_json(f'{{"classes":{mark}', '"labels":{') for mark in "[{")],
     "FiftyOne's JSON", "export as COCO from FiftyOne, with the segmentations"),
    ([_json('{"image":{"image_id"')], "SA-1B's JSON, whose masks have no labels", OWN),
    ([_json("[{", '"image(filename)?":', '"coordinates":{')],
     "CreateML's JSON, which has boxes", f"export {_COCO}"),
    ([_json("{", '"annotations":', f'"coordinates":[{mark}') + r'(?!.*"images"\s*:)'
      for mark in "[{"],
     "Dataloop's JSON", _CONVERT),
    ([_json('{"openlabel"')], "OpenLABEL's JSON", _CONVERT),
    ([_json('{"source-ref"')], "a manifest of SageMaker Ground Truth", _CONVERT),
    ([_json('{"type":"dataset"')], "Ultralytics' NDJSON", "export the YOLO folder"),
    ([_json("[{", '"ref_id":', '"(ann_id|sentences)":')], "RefCOCO's references", DATA),
    ([_json("[{", '"conversations":')], "LLaVA's dialogues, which have no outlines", DATA),
    ([_json("[{", '"image_id":', '"category_id":')],
     "COCO's results, without pictures and categories", "name the file of instances"),
    ([_json('{"info":{"description":"ISAT"')], "ISAT's JSON", "in ISAT, convert it to COCO"),
    ([_json('{"data_row"')], "Labelbox's export", _CONVERT),
    ([_json("{", '"type":"FeatureCollection"'), _json('[{"type":"Feature"')], "GeoJSON", OWN),
    ([_json(begins, '"(imgHeight|data_units|label_hash)":') for begins in "[{"],
     "JSON of Cityscapes or Encord", _CONVERT),
    ([r"\d+( -?\d*\.\d+| [01]){4,}\s*(\n|$)"], "YOLO's labels", _YOLO),
    ([r"(.*\n)?(nc\s*:\s*\d|names\s*:\s*(\[|\n))"], "YOLO's data.yaml", _YOLO),
)  # fmt: skip
KINDS = [Kind(re.compile("|".join(ways), re.DOTALL), name, fix) for ways, name, fix in _TABLE]
