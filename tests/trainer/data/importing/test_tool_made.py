"""Files that annotation tools' own exporters wrote, against what was drawn: tests/tools_made.

`tools/make_tool_fixtures.py` made them and computed the truth without any of the tools.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.importing.importer import Imported, import_annotations
from trainer.data.polygons import IGNORE, TARGET, paint_mask

MADE = ROOT / "tests" / "tools_made"
VERSIONS: dict[str, str] = json.loads((MADE / "VERSIONS.json").read_text())
TRUTH = {
    path.stem.replace("_", " "): np.asarray(Image.open(path)) > 0
    for path in (MADE / "truth").glob("*.png")
}
PICTURES = 5
DRAWN, PAINTED = {"tea cup", "eyes"}, {"ring", "面 包"}
EVERYTHING = DRAWN | PAINTED | {"people"}
LABEL_STUDIO = "label-studio/coco/result.json"
WITHOUT_PICTURES = "label-studio/coco-without-pictures/result.json"
TASKS = "label-studio/tasks.json"
BRUSH = "label-studio/brush/result_coco.json"
BARE, CVAT = (f"datumaro/{kind}/annotations/instances_default.json" for kind in
              ("coco-bare", "coco"))  # fmt: skip
SUPERVISION = "supervision/annotations.json"


def imported(source: str, target: Path, **options: Any) -> Imported:
    return import_annotations(MADE / source, target, pictures=MADE / "pictures", **options)


def masks(folder: Path) -> list[tuple[str, np.ndarray]]:
    """(label, mask) of every item; import asks for labels by their names."""
    return [
        (item.texts[0].replace("_", " "), paint_mask(item.polygons, *TRUTH["eyes"].shape))
        for split in ("train", "val")
        for item in read_split(folder, split)
    ]


def masks_of(labels: set[str], folder: Path) -> list[tuple[str, np.ndarray]]:
    """(label, mask) of every item, after a look that each picture has these labels alone."""
    found = masks(folder)
    assert sorted(label for label, _ in found) == sorted([*labels] * PICTURES)
    return found


def within_a_pixel(mask: np.ndarray, truth: np.ndarray) -> bool:
    """Whether they differ in pixels along the border only."""
    kernel, drawn = np.ones((3, 3), np.uint8), truth.astype(np.uint8)
    least, most = cv2.erode(drawn, kernel) > 0, cv2.dilate(drawn, kernel) > 0
    return bool((mask | ~least).all() and (most | ~mask).all())


@pytest.mark.parametrize("source, labels, options", [
    (LABEL_STUDIO, DRAWN, {}),  # what was painted is not in it: Label Studio leaves it out
    (WITHOUT_PICTURES, DRAWN, {}),
    (TASKS, DRAWN | PAINTED, {}),
    (BARE, EVERYTHING, {"frame": "upright"}),
    (CVAT, EVERYTHING, {"frame": "upright"}),
    (SUPERVISION, EVERYTHING, {"frame": "upright"}),
])  # fmt: skip
def test_coco_is_read_to_the_pixel(
    tmp_path: Path, source: str, labels: set[str], options: dict[str, str]
) -> None:
    imported(source, tmp_path / "out", **options)
    found = masks_of(labels, tmp_path / "out")
    for label, mask in found:
        assert np.array_equal(mask == TARGET, TRUTH[label]), label
        assert IGNORE not in mask


def test_label_studios_brush_is_read_to_the_pixel_but_for_holes(tmp_path: Path) -> None:
    """Brush labels to COCO writes outer outlines only; the ring's hole is lost there."""
    imported(BRUSH, tmp_path / "out")
    found = masks_of(DRAWN | PAINTED, tmp_path / "out")
    rows, columns = np.nonzero(TRUTH["ring"])
    middle = rows.mean().astype(int), columns.mean().astype(int)
    whole = TRUTH["ring"].astype(np.uint8)
    cv2.floodFill(whole, None, middle[::-1], 1)
    for label, mask in found:
        truth = whole > 0 if label == "ring" else TRUTH[label]
        assert np.array_equal(mask == TARGET, truth), label


def test_label_studios_exports_say_that_turned_pictures_are_read_as_seen(tmp_path: Path) -> None:
    for number, source in enumerate((LABEL_STUDIO, WITHOUT_PICTURES, TASKS, BRUSH)):
        done = imported(source, tmp_path / str(number))
        said, *bare = done.assumed
        assert said.startswith("3 rotated pictures' outlines read as upright, as Label Studio")
        assert all("left out, without an outline to ask about" in one for one in bare)


def test_label_studios_rectangles_are_boxes_where_they_were_drawn(tmp_path: Path) -> None:
    """They come without an outline, in other pixels than the polygons of a turned picture."""
    source = "label-studio/coco-boxed/result.json"
    with pytest.raises(DataError, match="a box alone.*allowed: an outline"):
        imported(source, tmp_path / "out")
    imported(source, tmp_path / "out", skip_broken=PICTURES)
    found = masks_of(DRAWN, tmp_path / "out")
    left, top, right, bottom = 24, 56, 34, 66  # BOX of the script
    box = np.zeros_like(TRUTH["eyes"])
    box[top:bottom, left:right] = True
    for label, mask in found:
        assert np.array_equal(mask == TARGET, TRUTH[label])
        assert np.array_equal(mask == IGNORE, box & (label == "eyes"))


@pytest.mark.parametrize("source, labels, options", [
    ("labelme-3", DRAWN, {}),
    ("labelme-4", DRAWN, {}),
    ("labelme-6", DRAWN | PAINTED, {}),
    ("x-anylabeling", DRAWN | {"people"}, {"frame": "stored"}),
])  # fmt: skip
def test_shapes_are_read_to_a_pixel_along_the_border(
    tmp_path: Path, source: str, labels: set[str], options: dict[str, str]
) -> None:
    """LabelMe paints an outline's own pixels as well. In its files the people are ignored."""
    imported(source, tmp_path / "out", **options)
    found = masks_of(labels, tmp_path / "out")
    for label, mask in found:
        assert within_a_pixel(mask == TARGET, TRUTH[label]), label
        ignored = TRUTH["people"] if source.startswith("labelme") else TRUTH["people"] & False
        assert within_a_pixel(mask == IGNORE, ignored)
        if label in PAINTED:
            assert np.array_equal(mask == TARGET, TRUTH[label]), label


@pytest.mark.parametrize("source", [BARE, CVAT, SUPERVISION, "x-anylabeling"])
def test_a_frame_that_the_file_does_not_tell_is_asked_for(tmp_path: Path, source: str) -> None:
    """Of the picture that is upside down; sizes tell it of those on their side."""
    with pytest.raises(DataError, match="--frame stored") as refused:
        imported(source, tmp_path / "out")
    assert len(refused.value.findings) == 1


@pytest.mark.parametrize("source, objects", [
    (BARE, DRAWN), (CVAT, DRAWN), (SUPERVISION, {"tea cup", "面 包", "people"}),
])  # fmt: skip
def test_what_iscrowd_means_is_said_and_may_be_told(
    tmp_path: Path, source: str, objects: set[str]
) -> None:
    """Datumaro drops CVAT's own is_crowd, so a crowd and a painted object look the same."""
    done = imported(source, tmp_path / "objects", frame="upright")
    assert "as CVAT and others mark what was painted" in done.assumed[0]
    imported(source, tmp_path / "crowds", frame="upright", iscrowd="crowd")
    assert {label for label, _ in masks(tmp_path / "crowds")} == objects
    with pytest.raises(ValueError, match="allowed: object, crowd"):
        imported(source, tmp_path / "no", iscrowd="perhaps")


@pytest.mark.parametrize("source, what, instead", [
    ("datumaro/cvat/default.xml", "CVAT's XML", "export the dataset as COCO 1.0"),
    ("datumaro/own/annotations/default.json", "Datumaro's own JSON", "as coco_instances"),
    ("datumaro/panoptic/annotations/panoptic_default.json", "panoptic", "as COCO's instances"),
])  # fmt: skip
def test_what_is_not_read_is_named_with_the_export_that_is(
    tmp_path: Path, source: str, what: str, instead: str
) -> None:
    for place in (MADE / source, (MADE / source).parent):
        with pytest.raises(DataError) as refused:
            import_annotations(place, tmp_path / "out", pictures=MADE / "pictures")
        assert len(refused.value.findings) == 1
        assert what in str(refused.value) and instead in str(refused.value)


def refusal(tmp_path: Path, name: str, text: str) -> DataError:
    """What import says of a folder with this file alone."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(text)
    with pytest.raises(DataError) as refused:
        import_annotations(tmp_path / "in", tmp_path / "out")
    return refused.value


@pytest.mark.parametrize("name, text, what", [
    ("a.jpg.json", '{"tags": [], "size": {"height": 9, "width": 9}, "objects": []}',
     "Supervisely's JSON"),
    ("a.json", '{"version": "2", "item": {"name": "a.jpg"}, "annotations": []}', "V7's Darwin"),
    ("a.json", '{"info": {"description": "ISAT", "name": "a.jpg"}, "objects": []}', "ISAT's JSON"),
    ("a.ndjson", '{"data_row": {"external_id": "a.jpg"}, "projects": {}}', "Labelbox's export"),
    ("a.json", '[{"ID": "x", "DataRow ID": "y", "Label": {}}]', "Labelbox's older export"),
    ("a.json", '{"dataset": "d", "image": {"original_filename": "a"}, "annotations": []}', "V7's"),
    ("a.json", '{"metadata": {"name": "a.jpg"}, "instances": []}', "SuperAnnotate's JSON"),
    ("a.json", '[{"metadata": {"name": "a.jpg"}, "instances": []}]', "SuperAnnotate's JSON"),
    ("a.json", '{"project_name": "p", "export_format_version": "1.1", "images": []}', "Hasty's"),
    ("a.json", '[{"id": "1", "externalId": "a.jpg", "labels": []}]', "Kili's JSON"),
    ("a.json", '[{"task_id": "1", "response": {"annotations": []}}]', "Scale's tasks"),
    ("a.json", '[{"name": "a.jpg", "labels": [{"poly2d": []}]}]', "BDD100K"),
    ("a.json", '{"name": "v1", "dataset": {"task_type": "x", "samples": []}}', "Segments.ai's"),
    ("a.json", '{"samples": [{"filepath": "a.jpg"}]}', "FiftyOne's JSON"),
    ("a.json", '{"image": {"image_id": 1}, "annotations": []}', "SA-1B's JSON"),
    ("a.json", '[{"image": "a.jpg", "annotations": [{"coordinates": {"x": 1}}]}]', "CreateML's"),
    ("a.json", '{"filename": "/a.jpg", "annotations": [{"coordinates": [[{"x": 5}]]}]}',
     "Dataloop's JSON"),
    ("a.json", '[{"label_hash": "x", "data_units": {}}]', "Encord"),
    ("a.json", '{"version": "3.1", "config": {"file": {}}, "file": {"1": {"fname": "a.jpg"}}}',
     "VIA 3"),
    ("a.json", '{"annotation": {"filename": "a.jpg", "object": []}}', "ADE20K's own JSON"),
    ("a.xml", "<annotation><filename>a.jpg</filename><object><polygon></polygon></object>"
     "</annotation>", "LabelMe's web tool"),
    ("a.geojson", '[{"type": "Feature", "geometry": {}}]', "GeoJSON"),
    ("train.parquet", "PAR1", "a binary file (.parquet)"),
    ("a.manifest", '{"source-ref": "s3://b/a.jpg"}', "SageMaker Ground Truth"),
])  # fmt: skip
def test_json_of_other_tools_is_known_by_its_first_keys(
    tmp_path: Path, name: str, text: str, what: str
) -> None:
    refused = refusal(tmp_path, name, text)
    assert what in str(refused) and "COCO" in str(refused.findings[0].fix)


@pytest.mark.parametrize("name, text, what", [
    ("a.json", '[{"ref_id": 1, "ann_id": [1], "sentences": []}]', "RefCOCO's references"),
    ("refs(unc).p", "(lp0", "a binary file (.p)"),
    ("a.json", '[{"id": "1", "image": "a.jpg", "conversations": []}]', "LLaVA's dialogues"),
])  # fmt: skip
def test_what_lisa_train_reads_as_it_is_is_not_imported(
    tmp_path: Path, name: str, text: str, what: str
) -> None:
    refused = refusal(tmp_path, name, text)
    assert what in str(refused) and "docs/data.md" in str(refused.findings[0].fix)


def test_the_table_names_what_made_each_row() -> None:
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    assert [made for made in VERSIONS.values() if made not in page] == []
    assert {path.name for path in MADE.iterdir() if path.is_dir()} == {
        *VERSIONS, "pictures", "truth",
    }  # fmt: skip
    sizes = [path.stat().st_size for path in MADE.rglob("*") if path.is_file()]
    assert sum(sizes) < 300 * 1024
