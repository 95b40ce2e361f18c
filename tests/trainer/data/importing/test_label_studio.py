"""Label Studio's JSON as its users have it: unfinished tasks, other units, what is not read.

The files are made up after its documentation and its users' issues.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.trainer.data.importing.test_tool_conventions import (
    BOX,
    CORNERS,
    UPRIGHT,
    mask_of,
    overlap,
    picture,
    tasks,
)
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.importing.importer import import_annotations

WIDTH, HEIGHT = UPRIGHT
POINTS = {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in CORNERS]}


def edited(folder: Path, value: dict[str, Any], change: Any, kind: str = "polygonlabels") -> Path:
    """Three sound tasks, after `change` of their list."""
    path = tasks(folder, kind, value) / "tasks.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    change(entries)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return folder


def refused(source: Path, target: Path) -> DataError:
    with pytest.raises(DataError) as error:
        import_annotations(source, target)
    return error.value


def test_tasks_that_nobody_finished_are_counted_and_named(tmp_path: Path) -> None:
    """With `download_all_tasks` they come along; none of their pictures has to be there."""

    def unfinished(entries: list[Any]) -> None:
        drawn = entries[0]["annotations"][0]["result"]
        for more in (
            {"annotations": [{"was_cancelled": True, "result": drawn}]},
            {"annotations": [], "predictions": [{"result": drawn}]},
            {"annotations": [], "drafts": [{"result": drawn}], "predictions": []},
            {"annotations": []},
            {"annotations": [{"was_cancelled": False, "result": []}]},
        ):
            entries.append({"data": {"image": f"/data/upload/3/{len(entries)}.jpg"}} | more)

    done = import_annotations(edited(tmp_path / "in", POINTS, unfinished), tmp_path / "out")
    assert (done.pictures, done.left_out) == (3, 5)
    assert done.assumed == (
        "5 pictures (1 skipped in Label Studio, 1 only predicted, not accepted, 1 only drafts, not "
        "submitted) left out, without an outline to ask about: 3.jpg, 4.jpg, 5.jpg, …",
    )


@pytest.mark.parametrize("kind, value", [
    ("polygonlabels", {"points": [[x / WIDTH, y / HEIGHT] for x, y in CORNERS]}),
    ("ellipselabels", {"x": 0.5, "y": 0.5, "radiusX": 0.2, "radiusY": 0.1, "rotation": 45}),
])  # fmt: skip
def test_fractions_are_refused_once(tmp_path: Path, kind: str, value: dict[str, Any]) -> None:
    error = refused(tasks(tmp_path / "in", kind, value), tmp_path / "out")
    assert len(error.findings) == 1 and "multiply them by 100" in str(error)


def test_fractions_among_per_cent_are_told(tmp_path: Path) -> None:
    def first(entries: list[Any]) -> None:
        entries[0]["annotations"][0]["result"][0]["value"]["points"] = [[0, 0], [0.4, 0], [0, 0.9]]

    error = refused(edited(tmp_path / "in", POINTS, first), tmp_path / "out")
    assert "fractions" in str(error) and "tasks[0]" in str(error) and len(error.findings) == 1


def test_pixels_are_refused_and_a_little_outside_is_not(tmp_path: Path) -> None:
    far = {"points": [[2 * x, 9 * y] for x, y in CORNERS]}
    error = refused(tasks(tmp_path / "in", "polygonlabels", far), tmp_path / "out")
    assert "100 x / width" in str(error) and "numbers from 12 to 288" in str(error)
    near = {"points": [[-0.4, -0.4], [100.3, 0], [100.3, 100.2], [0, 100]]}
    import_annotations(tasks(tmp_path / "near", "polygonlabels", near), tmp_path / "near-out")
    for item in read_split(tmp_path / "near-out", "train"):
        assert mask_of(item).all()


@pytest.mark.parametrize("kind, value, said", [
    ("rectanglelabels", {"x": 10, "y": 10, "width": 50, "height": 5}, "a rectangle"),
    ("keypointlabels", {"x": 10, "y": 10, "width": 0.5}, "a point, a bitmask or a vector"),
    ("bitmasklabels", {"imageDataURL": "data:image/png;base64,AA=="}, "a bitmask"),
    ("vectorlabels", {"vertices": [{"x": 1, "y": 2}]}, "a vector"),
])  # fmt: skip
def test_regions_that_are_not_read_say_what_to_draw(
    tmp_path: Path, kind: str, value: dict[str, Any], said: str
) -> None:
    error = refused(tasks(tmp_path / "in", kind, value), tmp_path / "out")
    assert len(error.findings) == 3 and said in str(error)
    assert "a polygon, an ellipse or a brush mask. Fix: outline it so in Label Studio" in str(error)


def test_a_turned_rectangle_is_ignored_where_it_lies(tmp_path: Path) -> None:
    """By `rotation` degrees about its upper left corner, clockwise, in pixels."""
    box = {"x": 50, "y": 50, "width": 50, "height": 10, "rotation": 90}

    def boxed(entries: list[Any]) -> None:
        for entry in entries:
            result = entry["annotations"][0]["result"]
            result.append(result[0] | {"type": "rectanglelabels",
                                       "value": box | {"rectanglelabels": ["cup"]}})  # fmt: skip

    source = edited(tmp_path / "in", POINTS, boxed)
    import_annotations(source, tmp_path / "out", skip_broken=3)
    for item in read_split(tmp_path / "out", "train"):
        rows, columns = np.nonzero(mask_of(item) == 255)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 69, 22, 29)
        assert (mask_of(item) == 1)[BOX[1] + 1 : BOX[3] - 1, BOX[0] + 1 : BOX[2] - 1].all()


def test_what_is_said_about_a_region_is_no_label(tmp_path: Path) -> None:
    """Choices and texts for each region repeat its outline; one without a label is reported."""

    def choices(entries: list[Any]) -> None:
        for entry in entries:
            result = entry["annotations"][0]["result"]
            result[0]["id"] = "a"
            for kind, said in (("choices", ["sharp"]), ("textarea", ["a note"]), ("rating", 3)):
                result.append({"id": "a", "type": kind, "value": POINTS | {kind: said}})
            result.append({"id": "b", "type": "polygonlabels", "value": POINTS})

    done = import_annotations(edited(tmp_path / "in", POINTS, choices), tmp_path / "out")
    assert done.items == {"train": 2, "val": 1} and overlap(tmp_path / "out") > 0.8
    assert done.assumed == ("3 outlines without a label are not read",)


@pytest.mark.parametrize("more, said", [
    ({"image_rotation": 90}, "turn the picture back"),
    ({"item_index": 1}, "make a task of each picture"),
])  # fmt: skip
def test_where_a_region_belongs_is_not_guessed(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    def change(entries: list[Any]) -> None:
        entries[1]["annotations"][0]["result"][0] |= more

    error = refused(edited(tmp_path / "in", POINTS, change), tmp_path / "out")
    assert len(error.findings) == 1 and said in str(error)


def test_a_project_as_people_have_it(tmp_path: Path) -> None:
    """Polygons, an ellipse and several labels against Pillow's own drawing, from local storage."""
    folder = tmp_path / "mein Projekt" / "fotos"
    entries = []
    star = [[50, 5], [60, 40], [95, 40], [66, 60], [78, 95], [50, 72], [22, 95], [34, 60], [5, 40]]
    for n, name in enumerate(("Straße 1.jpg", "b.JPG", "图片.jpg")):
        picture(folder / name, n)
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
                "to_name": "image"}  # fmt: skip
        result = [
            size | {"id": "x", "type": "polygonlabels",
                    "value": {"points": star, "closed": True, "polygonlabels": ["Star", "thing"]}},
            size | {"id": "y", "type": "ellipselabels",
                    "value": {"x": 50, "y": 50, "radiusX": 30, "radiusY": 20, "rotation": 0,
                              "ellipselabels": ["egg"]}},
        ]  # fmt: skip
        entries.append({"id": n, "annotations": [{"result": result}],
                        "data": {"image": f"/data/local-files/?d=fotos/{name}"}})  # fmt: skip
    (folder.parent / "project-1.json").write_text(json.dumps(entries), encoding="utf-8")
    import_annotations(folder.parent / "project-1.json", tmp_path / "out")
    canvas = {label: Image.new("1", UPRIGHT) for label in ("star", "egg")}
    ImageDraw.Draw(canvas["star"]).polygon(
        [(x * WIDTH / 100, y * HEIGHT / 100) for x, y in star], 1
    )
    ImageDraw.Draw(canvas["egg"]).ellipse([12, 24, 48, 56], 1)
    items = [one for split in ("train", "val") for one in read_split(tmp_path / "out", split)]
    assert sorted(item.texts[0] for item in items) == ["egg"] * 3 + ["star"] * 3 + ["thing"] * 3
    for item in items:
        true = np.asarray(canvas["egg" if item.texts[0] == "egg" else "star"])
        painted = mask_of(item) == 1
        assert (painted & true).sum() / (painted | true).sum() > 0.9, item.name
