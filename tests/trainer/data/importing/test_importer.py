"""Own data: masks come through pixel by pixel, splits stay apart, bad input is named, all of it."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shlex
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageOps
from pycocotools import mask as coco
from typer.testing import CliRunner

from tests.conftest import PHOTOS, ROOT, tiny_plan
from trainer.cli.train import app
from trainer.data import threads
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import Item, check_data, read_split
from trainer.data.images import read_image
from trainer.data.importing import coco_file
from trainer.data.importing.importer import import_annotations
from trainer.data.importing.outlines import outlined_as_json, trace_regions
from trainer.data.polygons import Polygon, paint_mask
from trainer.reporter import Reporter
from trainer.run.run import Run

Mask = NDArray[np.uint8]
HEIGHT, WIDTH = 40, 60
SQUARE = [[10, 10], [29, 10], [29, 24], [10, 24]]
SPECIAL = "the [SEG] one"


def picture(path: Path, colour: int = 0, orientation: int | None = None) -> Path:
    """A picture stored WIDTH x HEIGHT; different colours make different pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), (colour, 90, 200)).save(path, "JPEG", exif=exif)
    return path


def shape(label: object = "cup", points: object = SQUARE, **more: object) -> dict[str, object]:
    return {"label": label, "points": points, "shape_type": "polygon"} | more


def labelme(folder: Path, name: str, *shapes: object, colour: int = 0, **changes: object) -> Path:
    """A picture and its LabelMe file."""
    picture(folder / f"{name}.jpg", colour)
    note = {"imagePath": f"{name}.jpg", "imageData": None, "shapes": list(shapes)} | changes
    (folder / f"{name}.json").write_text(json.dumps(note), encoding="utf-8")
    return folder


def pair(folder: Path, *shapes: object) -> Path:
    """Two pictures, the least that splits: `a` with these shapes, `b` with one of its own."""
    labelme(folder, "a", *shapes)
    return labelme(folder, "b", shape("other"), colour=9)


def instances(folder: Path, *marks: dict[str, Any], **image: object) -> Path:
    """A COCO file of `a.jpg` with these annotations, and of `b.jpg` with one of its own."""
    if not (folder / "a.jpg").exists():
        picture(folder / "a.jpg")
    picture(folder / "b.jpg", 9)
    size = {"height": HEIGHT, "width": WIDTH}
    images = [
        {"id": 1, "file_name": "a.jpg"} | size | image,
        {"id": 2, "file_name": "b.jpg"} | size,
    ]
    other = {"image_id": 2, "category_id": 2, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    listed = [{"image_id": 1, "category_id": 1, "iscrowd": 0} | mark for mark in marks] + [other]
    for number, mark in enumerate(listed):
        mark["id"] = number
    names = [{"id": 1, "name": "cup"}, {"id": 2, "name": "other"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": listed, "categories": names}))
    return path


def run_lengths(mask: Mask) -> dict[str, object]:
    packed = coco.encode(np.asfortranarray(mask))
    return {"size": list(packed["size"]), "counts": packed["counts"].decode()}


def plain_runs(mask: Mask) -> dict[str, object]:
    flat = mask.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(starts, prepend=0).tolist()}


def ring() -> Mask:
    """A ring around a dot, another hole beside, and a lone pixel."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, (25, 18), 15, 1, -1)
    cv2.circle(mask, (25, 18), 9, 0, -1)
    mask[17:20, 24:27] = 1
    mask[5:8, 22:25] = 0
    mask[35, 55] = 1
    return mask


def items(data: Path) -> dict[str, Item]:
    """Every item of sound data by its name."""
    assert check_data(data) == []
    return {item.name: item for split in ("train", "val") for item in read_split(data, split)}


def painted(item: Item) -> Mask:
    return paint_mask(item.polygons, *read_image(item.image_path).shape[:2])


def imported(source: Path, **options: Any) -> dict[str, Item]:
    target = source.parent / f"{source.name}-data" if source.is_dir() else source.parent / "data"
    if source.is_file():
        target = source.parent.parent / "data"
    import_annotations(source, target, **options)
    return items(target)


def complaints(source: Path, **options: Any) -> list[str]:
    """The reasons of a refusal, which leaves nothing behind."""
    target = source.parents[1] / "refused" / "data"
    target.parent.mkdir(exist_ok=True)
    with pytest.raises(DataError) as raised:
        import_annotations(source, target, **options)
    assert os.listdir(target.parent) == []
    for finding in raised.value.findings:
        assert re.search("got |cannot be read: ", finding.what) and finding.fix
        assert "Error" not in finding.what
    return [finding.what for finding in raised.value.findings]


# ----------------------------------------------------------------------------------------- masks


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 5])
)
def test_any_mask_is_traced_exactly(seed: int, height: int, width: int, blur: int) -> None:
    rng = np.random.default_rng(seed)
    noise = cv2.blur(rng.random((height, width)), (blur, blur)).reshape(height, width)
    regions = np.where(noise > 0.5, 1, np.where(noise < 0.3, 255, 0)).astype(np.uint8)
    assert np.array_equal(paint_mask(trace_regions(regions), height, width), regions)


def test_labelmes_polygons_stay_as_they_are(tmp_path: Path) -> None:
    points = [[10.7, 8.2], [40.1, 12.9], [22.5, 33.3]]
    source = pair(tmp_path / "in", shape("tea_cup", points), shape("Ignore", SQUARE), shape("pot"))
    found = imported(source)
    assert sorted(found) == ["a-pot", "a-tea_cup", "b-other"]
    cup = found["a-tea_cup"]
    assert cup.texts == ("tea cup",) and not cup.is_sentence
    assert [polygon.label for polygon in cup.polygons] == ["target", "ignore"]
    assert cup.polygons[0].points.tolist() == points
    # LabelMe itself fills polygons with Pillow.
    theirs = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(theirs).polygon([tuple(p) for p in points], fill=1, outline=1)
    ours = paint_mask(cup.polygons[:1], HEIGHT, WIDTH) == 1
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


def test_labelmes_other_shapes(tmp_path: Path) -> None:
    mask = ring()[:35, :50]
    stored = BytesIO()
    Image.fromarray(mask * 255).save(stored, "PNG")
    drawn = base64.b64encode(stored.getvalue()).decode()
    corners = [[3, 2], [3 + 49, 2 + 34]]
    source = pair(
        tmp_path / "in",
        shape("box", [[29, 24], [10, 10]], shape_type="rectangle"),
        shape("disc", [[30, 20], [30, 31]], shape_type="circle"),
        shape("blob", corners, shape_type="mask", mask=drawn),
    )
    found = imported(source)
    box, disc, blob = (painted(found[f"a-{name}"]) for name in ("box", "disc", "blob"))
    assert box[10:25, 10:30].all() and box.sum() == 15 * 20
    assert disc.sum() == pytest.approx(np.pi * 11**2, rel=0.1)  # the outline is painted too
    assert np.array_equal(blob[2:37, 3:53], mask) and blob.sum() == mask.sum()


@pytest.mark.parametrize("packed", [run_lengths, plain_runs])
def test_cocos_run_lengths_with_holes(tmp_path: Path, packed: Any) -> None:
    found = imported(instances(tmp_path / "in", {"segmentation": packed(ring())}))
    assert np.array_equal(painted(found["a-cup"]), ring())


def test_cocos_polygons_and_crowds(tmp_path: Path) -> None:
    first, second = [5.5, 5.2, 30.1, 7, 20, 30.7], [40, 20, 55, 20, 55, 35, 40, 35]
    crowd = np.zeros((HEIGHT, WIDTH), np.uint8)
    crowd[:, 15:45] = 1
    found = imported(
        instances(
            tmp_path / "in",
            {"segmentation": [first]},
            {"segmentation": [second]},
            {"segmentation": run_lengths(crowd), "iscrowd": 1},
            {"segmentation": run_lengths(crowd), "iscrowd": 1, "category_id": 2},
        )
    )
    parts = coco.frPyObjects([first, second], HEIGHT, WIDTH)
    truth = np.where(crowd, 255, 0).astype(np.uint8)
    truth[coco.decode(coco.merge(parts)).astype(bool)] = 1
    assert np.array_equal(painted(found["a-cup"]), truth)
    assert "a-other" not in found  # a crowd alone is nothing to ask for


# ---------------------------------------------------------------------------------- orientations


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_stored_pixels_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    picture(tmp_path / "in" / "a.jpg", orientation=orientation)
    found = imported(instances(tmp_path / "in", {"segmentation": run_lengths(ring())}))
    stored = Image.fromarray(ring())
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    assert np.array_equal(painted(found["a-cup"]), np.asarray(ImageOps.exif_transpose(stored)))


def test_annotations_of_the_upright_picture_are_kept(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg", orientation=6)
    runs = run_lengths(np.ascontiguousarray(ring().T))
    path = instances(tmp_path / "in", {"segmentation": runs}, height=WIDTH, width=HEIGHT)
    assert np.array_equal(painted(imported(path)["a-cup"]), ring().T)


def test_what_the_size_cannot_tell_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg", orientation=3)
    (reason,) = complaints(instances(tmp_path / "in", {"segmentation": run_lengths(ring())}))
    assert "EXIF orientation 3" in reason


def test_labelmes_points_are_upright_already(tmp_path: Path) -> None:
    source = pair(tmp_path / "in", shape("cup", [[5, 45], [30, 45], [30, 55]]))
    picture(source / "a.jpg", orientation=6)
    assert painted(imported(source)["a-cup"]).shape == (WIDTH, HEIGHT)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    source = labelme(tmp_path / "in", "a", shape(), imageHeight=WIDTH, imageWidth=HEIGHT)
    assert "the upright picture's" in complaints(source)[0]
    path = instances(tmp_path / "coco", {"segmentation": [[1, 1, 9, 1, 9, 9]]}, width=WIDTH + 1)
    assert "the picture's" in complaints(path)[0]


# --------------------------------------------------------------------------------- splits, names


def test_splits_are_by_picture_and_last(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(12):
        labelme(source, f"p{number}", shape("cup"), shape("pot"), colour=number * 20)
    shutil.copy(source / "p3.jpg", source / "p4.jpg")  # the same picture under another name
    done = import_annotations(source, tmp_path / "one", val=0.3)
    assert done.items == {"train": 24 - done.items["val"], "val": done.items["val"]}
    assert (done.pictures, done.left_out) == (12, 0)

    def contents(data: Path, split: str) -> set[bytes]:
        return {item.image_path.read_bytes() for item in read_split(data, split)}

    val = contents(tmp_path / "one", "val")
    assert len(val) == 3 and not val & contents(tmp_path / "one", "train")
    labelme(source, "new", shape("cup"), colour=255)
    import_annotations(source, tmp_path / "two", val=0.3)
    assert len(contents(tmp_path / "two", "val") & val) >= 2
    import_annotations(source, tmp_path / "three", val=0.3, seed=1)
    assert contents(tmp_path / "three", "val") != contents(tmp_path / "two", "val")
    done = import_annotations(source, tmp_path / "four", val=0.3, test=0.2)
    parts = [contents(tmp_path / "four", split) for split in ("train", "val", "test")]
    assert parts[1] == contents(tmp_path / "two", "val") and list(map(len, parts)) == [6, 4, 2]
    assert len(set.union(*parts)) == 12 and set(done.items) == {"train", "val", "test"}
    import_annotations(source, tmp_path / "five", val=0.3, test=0.2)
    assert contents(tmp_path / "five", "test") == parts[2]


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.4), (0.1, 0.1), (0.9, 0.05)])
def test_each_split_has_a_picture_of_three(val: float, test: float, tmp_path: Path) -> None:
    for number in range(3):
        labelme(tmp_path / "in", f"p{number}", shape("cup"), colour=number * 20)
    done = import_annotations(tmp_path / "in", tmp_path / "out", val=val, test=test)
    assert done.items == {"train": 1, "val": 1, "test": 1}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "in" / "p0.json").unlink()
    (tmp_path / "in" / "p0.jpg").unlink()
    with pytest.raises(DataError, match="3 or more"):
        import_annotations(tmp_path / "in", tmp_path / "out", val=val, test=test)


def test_spellings_of_a_label_are_one(tmp_path: Path) -> None:
    far = [[x + 20, y + 12] for x, y in SQUARE]
    source = pair(tmp_path / "in", shape("tea_cup"), shape(" Tea  cup ", far))
    labelme(source, "c", shape("TEA CUP"), colour=30)
    done = import_annotations(source, tmp_path / "out")
    assert done.assumed == ("labels that differ only in capitals, blanks, _ or : are read as one: "
                            "' Tea  cup ' = 'TEA CUP' = 'tea_cup'",)  # fmt: skip
    found = items(tmp_path / "out")
    assert {one.texts[0] for one in found.values()} == {"tea cup", "other"}
    assert painted(found["a-tea_cup"])[34, 45] == painted(found["a-tea_cup"])[12, 12] == 1
    path = instances(tmp_path / "coco", {"segmentation": [[1, 1, 9, 1, 9, 9]]})
    notes = json.loads(path.read_text())
    notes["categories"][0]["name"] = "Tea_cup"
    notes["categories"].append({"id": 7, "name": "tea cup "})
    path.write_text(json.dumps(notes))
    told = import_annotations(path, tmp_path / "of-coco").assumed
    assert any("'Tea_cup' = 'tea cup '" in one for one in told)
    asked = tmp_path / "q.csv"
    asked.write_text("picture,label,question\na.jpg,Tea_cup,What holds tea?\nb.jpg,OTHER,Who?\n")
    found = imported(path, questions=asked)
    assert found["a-tea-cup"].texts == ("What holds tea?",)


def test_pictures_are_copied_once_and_shared(tmp_path: Path) -> None:
    source = pair(tmp_path / "in", shape("cup"), shape("pot"))
    found = imported(source)
    cup, pot = found["a-cup"].image_path, found["a-pot"].image_path
    assert cup.samefile(pot) and not cup.samefile(source / "a.jpg")
    assert cup.read_bytes() == (source / "a.jpg").read_bytes()


def test_odd_names(tmp_path: Path) -> None:
    long = "ä" * 300
    labels = ("a/b", "a b", "杯子", "🍵", "../../x", "ignored sign", "flag", long)
    source = pair(tmp_path / "in", *(shape(label) for label in labels))
    labelme(source / "sub", "a", shape("a/b"), colour=77)
    found = imported(source)
    assert {item.texts[0] for item in found.values()} == {*labels, "other"}
    assert {"a-a-b", "a-a-b-2", "a-杯子", "a-x", "sub-a-a-b"} <= set(found)
    assert all((painted(item) == 1).any() for item in found.values())


# ------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_questions(tmp_path: Path, kind: str) -> None:
    source = pair(tmp_path / "in", shape("tasse à thé"), shape("pot"))
    rows = [("a.jpg", "tasse a\u0300 the\u0301", 'What holds tea, "hot"?'),
            ("a.jpg", "tasse à thé", "What does one drink from?"),
            ("b.jpg", "other", "What is left?")]  # fmt: skip
    path = tmp_path / f"q.{kind}"
    if kind == "csv":
        lines = ["Picture, LABEL,question"]  # as somebody's spreadsheet has it
        lines += [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    else:
        keys = ("picture", "label", "question")
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    found = imported(source, questions=path)
    assert len(found) == 2 and all(item.is_sentence for item in found.values())
    assert found["a-tasse-à-thé"].texts == ('What holds tea, "hot"?', "What does one drink from?")


def test_one_labelme_file_is_told_from_coco_and_its_folder_named(tmp_path: Path) -> None:
    one = labelme(tmp_path / "in", "a", shape()) / "a.json"
    target = tmp_path / "out"
    with pytest.raises(DataError) as raised:
        import_annotations(one, target)
    (finding,) = raised.value.findings
    assert "LabelMe's or ReasonSeg's, of one picture" in finding.what
    assert finding.fix.endswith(str(one.parent)) and not target.exists()


def test_reasonseg_data_are_not_imported_and_that_is_said_once(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder = tmp_path / "in" / "ReasonSeg" / split
        labelme(folder, "a", shape())
        (folder / "a.json").write_text('{"shapes": [], "text": ["x"], "is_sentence": true}')
    first = tmp_path / "in" / "ReasonSeg" / "explanatory" / "train.json"
    first.parent.mkdir()
    first.write_text("[]")
    with pytest.raises(ValueError, match="holds ReasonSeg data already.*\n.*--check-data"):
        import_annotations(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("q.csv", "picture,label\na.jpg,cup", ["line 1: got 'picture,label'; allowed: a header"]),
        ("q.csv", "", ["line 1: got ''; allowed: a header with picture, label, question"]),
        ("q.txt", "", ["got '.txt'; allowed: a name that ends in .csv"]),
        ("q.csv", 'picture,label,question\na.jpg,cup,"x" y\n\na.jpg,cup,Which, here?\n'
         'a.jpg,cup,"What?\n',
         ["line 2: fields: cannot be read: ',' expected after", "line 4: fields: got 4; allowed: 3",
          "line 5: fields: cannot be read: unexpected end"]),
        ("q.jsonl", '{"picture": "a.jpg"\n[]\n{"picture": "a.jpg", "label": "cup"}',
         ["""line 1: JSON: got '{"picture": "a.jpg"'""", "line 2: JSON: got []",
          "line 3: question: got nothing"]),
        ("q.csv", f"picture,label,question\nz.jpg,cup,Which?\na.jpg,cup,{SPECIAL}",
         ["line 2: got 'z.jpg, cup'", "line 3: question: got 'the [SEG] one'"]),
        ("q.csv", "picture,label,question\na.jpg,cup,Which?\nb.jpg,other,Who?\nz.jpg,cup,Which?\n"
         "a.jpg,cap,What?", ["line 4: got 'z.jpg, cup'", "line 5: got 'a.jpg, cap'"]),
    ],
)  # fmt: skip
def test_bad_questions(tmp_path: Path, name: str, text: str, messages: list[str]) -> None:
    (tmp_path / name).write_text(text)
    reasons = complaints(pair(tmp_path / "in", shape()), questions=tmp_path / name)
    assert len(reasons) == len(messages)
    assert all(message in reason for message, reason in zip(messages, reasons, strict=True))


# -------------------------------------------------------------------------------- hostile sources


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagePath": "../outside.jpg"}, "imagePath: got '../outside.jpg'"),
        ({"imagePath": "..\\outside.jpg"}, "imagePath"),
        ({"imagePath": "link.jpg"}, "imagePath: got 'link.jpg'"),
        ({"imagePath": "/etc/passwd"}, "imagePath"),
        ({"imagePath": "x\0.jpg"}, "no such file"),
        ({"imagePath": "\ud800.jpg"}, "imagePath"),
        ({"imagePath": "x" * 5000}, "image"),
        ({"imagePath": None}, "imagePath"),
        ({"imagePath": "no.jpg", "imageData": "AAAA"}, "no such file"),
        ({"imagePath": "a.json"}, "no picture of a known kind"),
        ({"imagePath": "b.jpg"}, "picture: got 'b.jpg'"),
        ({"shapes": None}, "shapes: got nothing"),
        ({"shapes": [7]}, "shapes[0].label"),
        ({"shapes": [shape("  ")]}, "shapes[0].label"),
        ({"shapes": [shape(SPECIAL)]}, "label of a.jpg: got 'the [SEG] one'"),
        ({"shapes": [shape(shape_type="point")]}, "shapes[0].shape_type: got 'point'"),
        ({"shapes": [shape(shape_type=[])]}, "shapes[0].shape_type"),
        ({"shapes": [shape(points=SQUARE[:2])]}, "3 or more points"),
        ({"shapes": [shape(points=[[1, 1], [float("nan"), 2], [3, 3]])]}, "points[1]"),
        ({"shapes": [shape(points=[[1, 1], [10**400, 2], [3, 3]])]}, "points[1]"),
        ({"shapes": [shape(points=[[x + 500, y] for x, y in SQUARE])]}, "some part within"),
        ({"shapes": [shape(shape_type="mask", mask="AAAA")]}, "shapes[0].mask"),
        ({"shapes": [shape(shape_type="mask")]}, "shapes[0].mask"),
    ],
)
def test_bad_labelme(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    picture(tmp_path / "outside.jpg")
    source = labelme(pair(tmp_path / "in", shape()), "a", shape(), **changes)
    (source / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    reasons = complaints(source)
    assert any(message in reason for reason in reasons), reasons


SEGMENTATIONS = [
    None, [], {}, 7, [[1, 1, 5, 5]], [[1, 1, 5, 5, 9, 9, 3]], [[1, 1, float("nan"), 5, 9, 9]],
    [[1, 1, 1e12, 5, 9, 9]], [["1", 1, 3, 5, 9, 9]], [[-50, -30, -40, -30, -40, -20]],
    {"size": [HEIGHT, WIDTH], "counts": ""}, {"size": [HEIGHT, WIDTH], "counts": "0"},
    {"size": [HEIGHT, WIDTH], "counts": "oooo"}, {"size": [HEIGHT, WIDTH], "counts": "\0\0"},
    {"size": [HEIGHT, WIDTH], "counts": [1, 2]}, {"size": [HEIGHT, WIDTH], "counts": [-1, 2401]},
    {"size": [10**9, 10**9], "counts": [10**18]}, {"size": [HEIGHT, WIDTH], "counts": [2400]},
]  # fmt: skip


@pytest.mark.parametrize("segmentation", SEGMENTATIONS, ids=repr)
def test_bad_segmentations(tmp_path: Path, segmentation: object) -> None:
    (reason,) = complaints(instances(tmp_path / "in", {"segmentation": segmentation}))
    assert reason.startswith("annotations[0].segmentation: got ")


def test_bad_coco(tmp_path: Path) -> None:
    square = {"segmentation": [[1, 1, 9, 1, 9, 9]]}
    path = instances(
        tmp_path / "in", square, square | {"image_id": 8}, square | {"category_id": []}
    )
    notes = json.loads(path.read_text())
    for number, name in enumerate(("../x.jpg", "/etc/passwd", "none.jpg", "b.jpg"), 3):
        size = {"height": HEIGHT, "width": WIDTH}
        notes["images"].append({"id": number, "file_name": name} | size)
        mark = square | {"id": 10 + number, "image_id": number, "category_id": 1}
        notes["annotations"].append(mark)
    notes["images"].append({"id": 1, "file_name": "again.jpg"})
    notes["categories"].append({"id": 3, "name": " "})
    path.write_text(json.dumps(notes))
    reasons = complaints(path)
    for expected in (
        "categories[2].name", "images[6].id: got 1", "annotations[1].image_id: got 8",
        "annotations[2].category_id", "images[2].file_name: got '../x.jpg'",
        "images[3].file_name: got '/etc/passwd'", "got 'none.jpg'; allowed: the path of a picture",
        "picture: got 'b.jpg'",
    ):  # fmt: skip
        assert sum(expected in reason for reason in reasons) == 1, (expected, reasons)
    assert len(reasons) == 8


@pytest.mark.parametrize("text", ['{"shapes": [', "[" * 100_000, "[]", ""])
def test_broken_json(tmp_path: Path, text: str) -> None:
    source = pair(tmp_path / "in", shape())
    (source / "a.json").write_text(text)
    (reason,) = complaints(source)
    expected = "file: got " if text == "[]" else "file: cannot be read: "
    assert reason.startswith(expected)
    (tmp_path / "x.json").write_text(text)
    assert complaints(tmp_path / "in" / ".." / "x.json")[0].startswith(expected)


def test_truncated_picture(tmp_path: Path) -> None:
    source = pair(tmp_path / "in", shape())
    whole = (source / "a.jpg").read_bytes()
    (source / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert "image: cannot be read: " in complaints(source)[0]


def test_the_format_is_found(tmp_path: Path) -> None:
    square = {"segmentation": [[1, 1, 9, 1, 9, 9]]}
    path = instances(tmp_path / "in", square)
    import_annotations(path.parent, tmp_path / "folder")  # its only JSON
    path.rename(tmp_path / "moved.json")
    import_annotations(tmp_path / "moved.json", tmp_path / "apart", pictures=tmp_path / "in")
    assert set(items(tmp_path / "folder")) == set(items(tmp_path / "apart")) == {"a-cup", "b-other"}
    shutil.copy(tmp_path / "moved.json", pair(tmp_path / "in", shape()))
    assert complaints(tmp_path / "in") == [
        "file: got \"COCO's annotations\"; allowed: LabelMe's files, or one file of another tool "
        "for each split"
    ]
    assert "2 or more" in complaints(labelme(tmp_path / "one", "a", shape()))[0]


# ----------------------------------------------------------------------------------- command line


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_import_and_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pair(tmp_path / "in", shape("杯子"), shape("ignore", [[0, 0], [5, 0], [5, 5]]))
    data = tmp_path / "data"
    code, told = call("import", source, data)
    assert (code, told) == (
        0,
        f"{data}: train 1, val 1 items on 2 pictures; 0 pictures without an item\n"
        "note: no --questions: the model is asked for each label by its name: "
        "Can you segment the 杯子 in this image?\n",
    )
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        code, told = call("preview", data, "--split", split, "--out", f"{split}.png")
        assert code == 0 and "(phrase): " in told
    for arguments, message in (
        (("import", source, data), "not an empty folder"),
        (("import", source, source / "data"), "outside of what is read"),
        (("import", tmp_path / "none", tmp_path / "x"), "no such file or folder"),
        (("import", source, tmp_path / "x", "--val", "1"), "above 0 and below 1"),
        (("import", source, tmp_path / "x", "--test", "0.9"), "train needs some"),
        (("import", source, tmp_path / "x", "--pictures", tmp_path / "no"), "--pictures"),
        (("preview", data, "--split", "test"), "split"),
        (("preview", tmp_path / "none"), "no such folder"),
        (("preview", data, "--count", "0"), "--count"),
        (("preview", data, "--out", data / "ReasonSeg" / "train" / "x.png"), "data folder"),
        (("preview", data, "--out", tmp_path / "none" / "x.png"), "--out"),
        (("preview", data, "--out", tmp_path), "--out"),
        (("preview", data, "--out", tmp_path / "x.what"), "x"),
    ):
        code, told = call(*arguments)
        assert code == 2 and message in told, (arguments, told)
    monkeypatch.chdir(data)
    assert call("preview", ".")[0] == 2  # by default it is written here
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "x").exists()


def test_what_lies_in_the_folder_unread_is_named(tmp_path: Path) -> None:
    """A colleague's CVAT file and a forgotten picture would otherwise be missed without a word."""
    source = pair(tmp_path / "in", shape())
    picture(source / "forgotten.jpg", 30)
    (source / "more.xml").write_text('<?xml version="1.0"?><annotations><version>1.1</version>')
    code, told = call("import", source, tmp_path / "data")
    assert code == 0 and "on 2 pictures; 1 picture without an item" in told
    assert "1 picture left out, without an outline to ask about: forgotten.jpg" in told
    assert 'more.xml: file: got "CVAT\'s XML"' in told and "export the dataset as COCO 1.0" in told


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
@pytest.mark.parametrize("encoding", ["cp1252", "cp850"])
def test_a_name_that_is_no_utf_8_is_told_from_a_missing_file(tmp_path: Path, encoding: str) -> None:
    source = labelme(pair(tmp_path / "in", shape()), "c", shape(), imagePath="Straße.jpg")
    (source / "c.jpg").rename(source / os.fsdecode("Straße.jpg".encode(encoding)))
    code, told = call("import", source, tmp_path / "data")
    assert code == 2 and "the file is there, but its name is no UTF-8: rename" in told, told
    assert f"convmv -r -f {encoding}" in told and "fetch the picture" not in told
    assert "--pictures" not in told  # they do not lie elsewhere


def test_a_question_about_a_picture_that_is_left_out_names_no_other(tmp_path: Path) -> None:
    source = pair(tmp_path / "in", shape())
    picture(source / "a2.jpg", 20)
    (source / "a2.json").write_text("{", encoding="utf-8")
    asked = tmp_path / "questions.csv"
    asked_for = {"a.jpg": "cup", "b.jpg": "other", "a2.jpg": "cup", "a3.jpg": "cup"}
    lines = [f"{name},{label},What holds tea?" for name, label in asked_for.items()]
    asked.write_text("\n".join(["picture,label,question", *lines]), encoding="utf-8")
    done = import_annotations(source, tmp_path / "data", questions=asked, val=0.5, skip_broken=2)
    _, file, gone = (tmp_path / "data" / "skipped.txt").read_text().splitlines()
    assert "a2.json: file" in file and "a3.jpg, cup" in gone and "did you mean a.jpg?" in gone
    assert any("1 label of broken entries goes with them: lines 4" in one for one in done.assumed)
    assert not any("without an outline" in one for one in done.assumed)


def test_a_preview_shows_target_and_ignored(tmp_path: Path) -> None:
    corner = [[0, 0], [8, 0], [8, 8], [0, 8]]
    source = pair(tmp_path / "in", shape("cup"), shape("ignore", corner))
    import_annotations(source, tmp_path / "data")
    split = "train" if (tmp_path / "data/ReasonSeg/train/a-cup.json").exists() else "val"
    code, told = call("preview", tmp_path / "data", "--split", split, "--out", tmp_path / "p.png")
    assert code == 0 and told.startswith("a-cup (phrase): cup\n")
    sheet = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    tile = sheet[20:, 256 : 256 + WIDTH]
    assert np.abs(tile[17, 20] - [0, 128, 219]).max() < 6  # two thirds picture, a third TRUE
    assert np.abs(tile[1, 1] - [56, 79, 219]).max() < 6  # two thirds picture, a third IGNORED


def test_a_preview_on_a_full_disk_is_no_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.data.overlays.write_whole", full)
    code, told = call("preview", PHOTOS, "--out", tmp_path / "p.png")
    assert code == 1 and "make room" in told and "the same command again" in told


# ----------------------------------------------------------------------------------- the page

PAGE = ROOT / "docs" / "own-data.md"
OUTLINED = PHOTOS / "outlined"
LABELS = {
    "astronaut": "helmet", "astronaut_patch": "patch", "cat": "eye", "cat_nose": "nose",
    "clock": "clock", "coffee": "cup", "coffee_handle": "handle", "photographer": "man",
    "retina": "optic disc", "rocket": "rocket",
}  # fmt: skip


def test_the_outlined_photographs_are_those_of_reasonseg() -> None:
    """`tests/photos/outlined` holds them once more, as someone would have left them in LabelMe."""
    expected: dict[str, list[tuple[str, Any]]] = {}
    for split in ("train", "val"):
        for item in read_split(PHOTOS, split):
            for polygon in item.polygons:
                label = LABELS[item.name] if polygon.label == "target" else "ignore"
                drawn = expected.setdefault(item.name.split("_")[0], [])
                drawn.append((label, polygon.points.tolist()))
    found = {
        path.stem: [(one["label"], one["points"]) for one in json.loads(path.read_text())["shapes"]]
        for path in OUTLINED.glob("*.json")
    }
    assert found == expected


def block(kind: str) -> str:
    """The first block of a kind on the page."""
    return PAGE.read_text(encoding="utf-8").split(f"```{kind}\n")[1].split("```")[0]


def test_the_pages_commands_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert block("csv") == (OUTLINED / "questions.csv").read_text(encoding="utf-8")
    shutil.copytree(PHOTOS, tmp_path / "tests" / "photos")
    monkeypatch.chdir(tmp_path)
    for part in block("console").split("$ lisa-train ")[1:]:
        command, _, output = part.partition("\n")
        assert call(*shlex.split(command)) == (0, output), command


def test_imported_data_train(tmp_path: Path) -> None:
    pictures = PHOTOS / "ReasonSeg" / "train"
    import_annotations(OUTLINED, tmp_path / "data", pictures=pictures, val=0.2)
    train, val = (read_split(tmp_path / "data", split)[:2] for split in ("train", "val"))
    quiet = Reporter(lambda text: None, lambda what, done, total: None)
    summary = Run(tiny_plan(), train, val, tmp_path / "run", tmp_path / "cache", quiet).train()
    assert summary["steps"] == 1


@pytest.mark.parametrize("tool", ["LabelMe", "COCO"])
def test_import_says_how_far_it_is(tool: str, tmp_path: Path) -> None:
    source = pair(tmp_path / "in", shape())
    if tool == "COCO":
        images = [{"id": n, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
                  for n, name in enumerate("ab")]  # fmt: skip
        outline = [float(x) for point in SQUARE for x in point]
        marks = [{"id": n, "image_id": n, "category_id": 1, "segmentation": [outline]}
                 for n in range(2)]  # fmt: skip
        document = {"images": images, "annotations": marks,
                    "categories": [{"id": 1, "name": "cup"}]}  # fmt: skip
        for path in source.glob("*.json"):
            path.unlink()
        (source / "coco.json").write_text(json.dumps(document))
    said: list[tuple[str, int, int]] = []
    import_annotations(source, tmp_path / "out", progress=lambda *one: said.append(one))
    if tool == "COCO":
        assert said.pop(0)[0].startswith("reading coco.json, ")
        assert said.pop(0) == ("checking annotations", 0, 2)
    assert said == [
        *(("importing pictures", done, 2) for done in (1, 2)),
        ("writing to disk", 1, 1),
    ]


def test_findings_about_annotations_come_in_the_files_order(tmp_path: Path) -> None:
    """Though ids are checked before the outlines, and outlines picture by picture."""
    sound, broken = [[2.0, 2, 30, 2, 30, 30]], [[1, 2, 3]]
    marks = [
        {"image_id": 2, "category_id": 1, "segmentation": broken},
        {"image_id": 9, "category_id": 1, "segmentation": sound},
        {"image_id": 1, "category_id": 1, "segmentation": broken},
        {"image_id": 1, "category_id": 1, "segmentation": [[900, 9, 990, 9, 990, 99]]},
        {"image_id": 1, "category_id": 9, "segmentation": sound},
        {"image_id": 2, "category_id": 1, "segmentation": broken},
    ]
    with pytest.raises(DataError) as refused:
        import_annotations(instances(tmp_path / "in", *marks), tmp_path / "out")
    about = [re.findall(r"annotations\[(\d)]", one.what) for one in refused.value.findings]
    assert about == [["0"], ["1"], ["2"], ["4"], ["5"], ["3"]]  # the last is found by painting


@pytest.mark.parametrize(
    ("kind", "points"),
    [(np.int32, [[0, 1], [65535, 2], [7, 30]]), (float, [[-1, 0.5], [2, 5], [70000, 3]])],
)  # fmt: skip
def test_outlines_are_spelled_as_json_does(kind: type, points: list[list[float]]) -> None:
    polygon = Polygon("target", np.array(points).astype(kind))
    shapes = [{"label": "target", "points": polygon.points.tolist()}]
    spelled = [json.dumps(shapes * count, separators=(",", ":")) for count in (2, 0, 1)]
    outlined = {"a": [polygon, polygon], "b": [], "c": [polygon]}
    assert outlined_as_json(outlined) == dict(zip("abc", spelled, strict=True))


def test_a_large_file_is_counted_while_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_file, "_OFTEN", 10)
    where = [2.0, 2, 30, 2, 30, 30]
    marks = [{"image_id": 1, "category_id": 1, "segmentation": [where]} for _ in range(50)]
    notes = instances(tmp_path / "in", *marks)
    said: list[tuple[str, int, int]] = []
    import_annotations(notes, tmp_path / "out", progress=lambda *one: said.append(one))
    checked = [(done, total) for what, done, total in said if what.startswith("checking")]
    assert checked == [(done, 51) for done in range(0, 51, 10)]


def test_processes_draw_and_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    images, marks = [], []
    for number in range(40):
        name = f"{number}.jpg"
        if number % 7:  # else it is missing
            picture(tmp_path / "in" / name, number, orientation=6 if number % 5 == 0 else None)
        size = (HEIGHT, WIDTH) if number % 5 or number % 2 else (WIDTH, HEIGHT)
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        far = 900 if number % 11 == 0 else 0  # no pixel of the picture
        where = [far + 2, 2, far + 20 + number % 9, 2, far + 20, 20]
        marks += [
            {"image_id": number, "category_id": 1, "segmentation": [where]},
            {"image_id": number, "category_id": 2, "segmentation": run_lengths(ring())}
            | {"iscrowd": number % 2},
        ]
    for number, mark in enumerate(marks):
        mark["id"] = number
    names = [{"id": 1, "name": "cup"}, {"id": 2, "name": "ring"}]
    notes = tmp_path / "in" / "instances.json"
    notes.write_text(json.dumps({"images": images, "annotations": marks, "categories": names}))

    def done(target: str) -> tuple[object, ...]:
        with pytest.raises(DataError) as refused:
            import_annotations(notes, tmp_path / target)
        told = import_annotations(notes, tmp_path / target, skip_broken=40)
        files = [path for path in sorted((tmp_path / target).rglob("*")) if path.is_file()]
        contents = [(path.relative_to(tmp_path / target), path.read_bytes()) for path in files]
        return refused.value.findings, told, contents

    alone = done("alone")
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "WORTH_PROCESSES", 1)
    assert done("together") == alone
    assert len(alone[0]) > 8  # type: ignore[arg-type]
    assert len(list((tmp_path / "alone").rglob("*.jpg"))) > 20
