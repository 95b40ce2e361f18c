"""Annotation tools' own meaning: turned pictures, painted masks, encodings, words and shapes."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.brush import packed
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import Item, read_split
from trainer.data.importing.encoding import decoded
from trainer.data.importing.importer import Imported, import_annotations
from trainer.data.polygons import paint_mask

UPRIGHT = (60, 80)  # width, height
BOX = (6, 8, 24, 32)  # left, top, right, bottom of the object in the upright picture
# How Pillow makes the stored picture of an upright one, by the orientation that undoes it.
STORE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def picture(path: Path, seed: int, orientation: int = 1) -> tuple[int, int]:
    """Write a picture with a bright object at BOX as one sees it; its stored (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 90, (UPRIGHT[1], UPRIGHT[0], 3))
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 250
    image = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if orientation in STORE:
        image = image.transpose(STORE[orientation])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif, quality=95)
    return image.size


def mask_of(item: Item) -> np.ndarray:
    return paint_mask(item.polygons, UPRIGHT[1], UPRIGHT[0])


def overlap(folder: Path) -> float:
    """The worst IoU of the imported masks with BOX."""
    true = np.zeros((UPRIGHT[1], UPRIGHT[0]), bool)
    true[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    ious = []
    for split in ("train", "val"):
        for item in read_split(folder, split):
            painted = mask_of(item) == 1
            ious.append((painted & true).sum() / (painted | true).sum())
    assert ious
    return float(min(ious))


def coco(folder: Path, orientation: int, contributor: str, scale: bool) -> Path:
    """COCO of three pictures; `scale`: outlines in parts of the upright picture, stored size."""
    images, notes = [], []
    for n in range(3):
        width, height = picture(folder / f"{n}.jpg", n, orientation)
        across, down = (width / UPRIGHT[0], height / UPRIGHT[1]) if scale else (1, 1)
        left, top, right, bottom = BOX
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        outline = [part for x, y in corners for part in (x * across, y * down)]
        size = (width, height) if scale else UPRIGHT
        images.append({"id": n, "file_name": f"{n}.jpg", "width": size[0], "height": size[1]})
        notes.append({"id": n, "image_id": n, "category_id": 0, "segmentation": [outline],
                      "iscrowd": 0})  # fmt: skip
    return written(folder, images, notes, {"contributor": contributor})


def written(folder: Path, images: list[Any], notes: list[Any], info: dict[str, Any]) -> Path:
    path = folder / "result.json"
    document = {"images": images, "annotations": notes, "info": info,
                "categories": [{"id": 0, "name": "cup"}]}  # fmt: skip
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_studio_draws_on_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    """Its converter multiplies per cent of the upright picture by the stored width and height."""
    source = coco(tmp_path / "in", orientation, "Label Studio", scale=True)
    done = import_annotations(source, tmp_path / "out")
    assert overlap(tmp_path / "out") > 0.8
    assert any("Label Studio" in what for what in done.assumed) == (orientation != 1)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_frame_that_nothing_tells_is_asked_for(tmp_path: Path, orientation: int) -> None:
    source = coco(tmp_path / "in", orientation, "", scale=False)
    with pytest.raises(DataError, match="--frame stored or --frame upright"):
        import_annotations(source, tmp_path / "out")
    import_annotations(source, tmp_path / "out", frame="upright")
    assert overlap(tmp_path / "out") > 0.8
    import_annotations(source, tmp_path / "stored", frame="stored")
    assert overlap(tmp_path / "stored") < 0.1
    with pytest.raises(ValueError, match="allowed: stored, upright"):
        import_annotations(source, tmp_path / "no", frame="sideways")


def painted(folder: Path, attributes: dict[str, Any] | None) -> Path:
    images, notes = [], []
    for n in range(3):
        picture(folder / f"{n}.jpg", n)
        mask = np.zeros((UPRIGHT[1], UPRIGHT[0]), np.uint8, order="F")
        mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
        runs = coco_mask.encode(np.asfortranarray(mask))
        runs["counts"] = runs["counts"].decode()
        images.append({"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 80})
        note = {"id": n, "image_id": n, "category_id": 0, "segmentation": runs, "iscrowd": 1}
        notes.append(note if attributes is None else note | {"attributes": attributes})
    return written(folder, images, notes, {})


def test_masks_painted_in_cvat_are_objects(tmp_path: Path) -> None:
    """CVAT exports them as run lengths with iscrowd 1, beside attributes of its own."""
    done = import_annotations(painted(tmp_path / "in", {"occluded": False}), tmp_path / "out")
    assert overlap(tmp_path / "out") == 1
    assert any("CVAT" in what and what.startswith("3 ") for what in done.assumed)


@pytest.mark.parametrize("attributes", [None, {"is_crowd": True}])
def test_crowds_stay_crowds(tmp_path: Path, attributes: dict[str, Any] | None) -> None:
    with pytest.raises(DataError, match="outline and label more pictures"):
        import_annotations(painted(tmp_path / "in", attributes), tmp_path / "out")


CORNERS = [[BOX[0], BOX[1]], [BOX[2], BOX[1]], [BOX[2], BOX[3]], [BOX[0], BOX[3]]]


def labelme(folder: Path, *shapes: dict[str, Any], encoding: str = "utf-8") -> Path:
    for n in range(3):
        picture(folder / f"{n}.jpg", n)
        notes = {"imagePath": f"{n}.jpg", "imageWidth": 60, "imageHeight": 80, "shapes": shapes}
        text = json.dumps(notes, ensure_ascii=False)
        (folder / f"{n}.json").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize(
    "kind", ["polygon", "rectangle", "oriented_rectangle", "rotation", "quadrilateral"]
)
def test_shapes_with_four_corners(tmp_path: Path, kind: str) -> None:
    shape = {"label": "cup", "shape_type": kind, "points": CORNERS}
    import_annotations(labelme(tmp_path / "in", shape), tmp_path / "out")
    assert overlap(tmp_path / "out") > 0.8


@pytest.mark.parametrize("orientation", STORE)
def test_shapes_drawn_on_the_picture_as_stored(tmp_path: Path, orientation: int) -> None:
    """X-AnyLabeling's, or older LabelMe's; a painted mask stays the same to the pixel."""
    inside = np.zeros((UPRIGHT[1], UPRIGHT[0]), np.uint8)
    inside[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    inside[BOX[1] + 2, BOX[0] : BOX[2] - 5] = 0  # not the same from any other side
    stored = np.asarray(Image.fromarray(inside).transpose(STORE[orientation]))
    rows, columns = np.nonzero(stored)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    file = BytesIO()
    Image.fromarray(stored[top:bottom, left:right] * 255).save(file, "PNG")
    shapes = [
        {"label": "mask", "shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode(),
         "points": [[int(left), int(top)], [int(right) - 1, int(bottom) - 1]]},
        {"label": "box", "shape_type": "rectangle",
         "points": [[int(left), int(top)], [int(right), int(bottom)]]},
    ]  # fmt: skip
    source = labelme(tmp_path / "in", *shapes)
    for n in range(3):
        width, height = picture(source / f"{n}.jpg", n, orientation)
        notes = json.loads((source / f"{n}.json").read_text(encoding="utf-8"))
        notes |= {"imageWidth": width, "imageHeight": height}
        (source / f"{n}.json").write_text(json.dumps(notes), encoding="utf-8")
    import_annotations(source, tmp_path / "out", frame="stored")
    for item in read_split(tmp_path / "out", "train"):
        painted = mask_of(item) == 1
        if item.texts == ("mask",):
            assert np.array_equal(painted, inside == 1)
        else:
            assert (painted & (inside == 1)).sum() > 0.95 * inside.sum()
            assert painted.sum() < 1.2 * inside.sum()


def test_a_frame_may_be_said_where_no_size_is_told(tmp_path: Path) -> None:
    shape = {"label": "cup", "shape_type": "polygon", "points": [[56, 6], [72, 6], [56, 24]]}
    source = labelme(tmp_path / "in", shape)
    for n in range(3):
        picture(source / f"{n}.jpg", n, 6)
        notes = {"imagePath": f"{n}.jpg", "shapes": [shape]}
        (source / f"{n}.json").write_text(json.dumps(notes), encoding="utf-8")
    done = import_annotations(source, tmp_path / "out", frame="stored")
    assert done.assumed == ("3 rotated pictures' shapes read as drawn on the picture as stored",)
    for item in read_split(tmp_path / "out", "train"):
        rows, columns = np.nonzero(mask_of(item) == 1)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (56, 72, 36, 54)


@pytest.mark.parametrize("kind", ["line", "linestrip", "point", "points", "cuboid"])
def test_a_shape_that_is_not_read_is_refused_for_its_own_reason(tmp_path: Path, kind: str) -> None:
    shape = {"label": "cup", "shape_type": kind, "points": CORNERS}
    with pytest.raises(DataError) as refused:
        import_annotations(labelme(tmp_path / "in", shape), tmp_path / "out")
    assert ("it has no inside" in str(refused.value)) == (kind != "cuboid")
    assert str(refused.value).count(f"got '{kind}'") == 3  # all of them, at once


@pytest.mark.parametrize("word", ["ignore", "__ignore__", "_ignore_", "Ignore"])
def test_words_for_ignore(tmp_path: Path, word: str) -> None:
    """In LabelMe's files and as a category of COCO's; never asked for."""
    shapes = [{"label": "cup", "shape_type": "polygon", "points": CORNERS},
              {"label": word, "shape_type": "rectangle",
               "points": [[40, 50], [50, 60]]}]  # fmt: skip
    import_annotations(labelme(tmp_path / "in", *shapes), tmp_path / "out")
    source = coco(tmp_path / "coco", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    notes["categories"].append({"id": 1, "name": word})
    notes["annotations"] += [
        {"id": 10 + n, "image_id": n, "category_id": 1, "iscrowd": 0,
         "segmentation": [[40, 50, 50, 50, 50, 60, 40, 60]]}
        for n in range(3)
    ]  # fmt: skip
    source.write_text(json.dumps(notes), encoding="utf-8")
    import_annotations(source, tmp_path / "of coco")
    for folder in (tmp_path / "out", tmp_path / "of coco"):
        items = [item for split in ("train", "val") for item in read_split(folder, split)]
        assert [item.texts for item in items] == [("cup",)] * 3
        for item in items:
            ignored = mask_of(item) == 255
            assert ignored[51:59, 41:49].all() and not ignored[:48].any()


def test_of_an_object_and_what_is_ignored_the_smaller_lies_on_top(tmp_path: Path) -> None:
    """As with LabelMe's shapes, whichever comes first in the file."""
    source = coco(tmp_path / "coco", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    notes["categories"].append({"id": 1, "name": "ignore"})
    around, within = [0, 0, 60, 0, 60, 80, 0, 80], [10, 12, 14, 12, 14, 16, 10, 16]
    notes["annotations"] += [
        {
            "id": 10 + n + 3 * k,
            "image_id": n,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": [part],
        }
        for n in range(3)
        for k, part in enumerate((within, around))
    ]
    source.write_text(json.dumps(notes), encoding="utf-8")
    import_annotations(source, tmp_path / "out")
    for item in read_split(tmp_path / "out", "train"):
        mask = mask_of(item)
        assert (mask[12:16, 10:14] == 255).all() and mask[9, 7] == 1 and mask[70, 50] == 255


def test_vias_coco_is_read(tmp_path: Path) -> None:
    """Its older versions give ids as text, and a polygon without the list around it.

    VIA (VGG Image Annotator) is no package: made up after its code and what people show of it.
    """
    source = coco(tmp_path / "in", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    for one in notes["annotations"]:
        one["segmentation"] = one["segmentation"][0]
        one["image_id"] = str(one["image_id"])
    source.write_text(json.dumps(notes), encoding="utf-8")
    import_annotations(source, tmp_path / "out")
    assert overlap(tmp_path / "out") == 1


VIA = {"0.jpg123": {"filename": "0.jpg", "size": 123, "regions": [], "file_attributes": {}}}


@pytest.mark.parametrize("name, text", [
    ("via.json", json.dumps(VIA)),
    ("project.json", json.dumps({"_via_settings": {}, "_via_img_metadata": VIA})),
    ("via.csv", "filename,file_size,file_attributes,region_count,region_id\n0.jpg,123,{},0,0\n"),
])  # fmt: skip
def test_via_is_told_what_to_export(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    for source in (tmp_path / "in", tmp_path / "in" / name):
        with pytest.raises(DataError, match="Export Annotations .COCO format.") as refused:
            import_annotations(source, tmp_path / "out")
        assert len(refused.value.findings) == 1 and "VIA" in str(refused.value)


def test_pascal_vocs_boxes_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "0.xml").write_text("<annotation><filename>0.jpg</filename></annotation>")
    with pytest.raises(DataError, match="Pascal VOC's XML"):
        import_annotations(tmp_path / "0.xml", tmp_path / "out")


@pytest.mark.parametrize("name, content, what, fix", [
    ("0.zip", b"PK\x03\x04\x14\x00\xff\xfe", "a ZIP", "unpack it"),
    ("0.ZIP", b"PK\x03\x04\x14\x00\xff\xfe", "a ZIP", "unpack it"),
    ("0.Rar", b"Rar!\x1a\x07\x01\x00", "a RAR", "unpack it"),
    ("0.7Z", b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    ("0.tar.gz", b"\x1f\x8b\x08", "a gzip archive", "unpack it"),
    ("0.tar", b"0.jpg" + bytes(252) + b"ustar\x00", "a tar archive", "unpack it"),
    ("0.TXT", b"0 0.5 0.5 0.2 0.2\n", "YOLO's labels", "the labels"),
    ("0.txt", b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.1 0.2 0.3\n", "YOLO's labels", "the labels"),
    ("data.yaml", b"train: ../train/images\nnc: 1\nnames: ['cup']\n", "YOLO's", "the labels"),
    ("a.csv", b"image,label,polygon\na.jpg,cup,[[1, 2]]\n", "a table", "as COCO's instances"),
    ("a.XLSX", b"PK\x03\x04\x14\x00", "a table", "as COCO's instances"),
    ("q.csv", b"image;label;Question\na.jpg;cup;Which?\n", "a file of questions", "--questions"),
    ("q.jsonl", b'{"picture": "a.jpg", "question": "x"}\n', "a file of questions", "--questions"),
    ("a.ndjson", b'{"image": "a.jpg"}\n{"image": "b.jpg"}\n', "JSON lines", "into one list"),
    ("a.json", b'{"type": "FeatureCollection"}', "GeoJSON", "as COCO's instances"),
    ("a.json", b'{"imgHeight": 9, "imgWidth": 9, "objects": []}', "Cityscapes", "to polygons"),
    ("data.yaml", b"path: cups\nnames:\n  0: cup\n", "YOLO's data.yaml", "the labels"),
])  # fmt: skip
def test_files_of_other_kinds_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, what: str, fix: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    for source in (tmp_path / "in", tmp_path / "in" / name):
        with pytest.raises(DataError) as refused:
            import_annotations(source, tmp_path / "out")
        assert len(refused.value.findings) == 1
        assert what in str(refused.value) and fix in str(refused.value)


def test_a_picture_is_no_annotation(tmp_path: Path) -> None:
    picture(tmp_path / "0.jpg", 0)
    with pytest.raises(DataError, match="file: got 'a picture'.*Fix: name its annotations"):
        import_annotations(tmp_path / "0.jpg", tmp_path / "out")


def test_a_phones_heic_is_named(tmp_path: Path) -> None:
    shape = {"label": "cup", "shape_type": "polygon", "points": CORNERS}
    source = labelme(tmp_path / "in", shape)
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
    (source / "0.jpg").write_bytes(heic)
    with pytest.raises(DataError, match="HEIC.*save the picture as JPEG"):
        import_annotations(source, tmp_path / "out")


def test_fractions_are_no_pixels(tmp_path: Path) -> None:
    """YOLO's and others' numbers in the files of LabelMe and COCO."""
    fractions = [[x / UPRIGHT[0], y / UPRIGHT[1]] for x, y in CORNERS]
    shape = {"label": "cup", "shape_type": "polygon", "points": fractions}
    source = coco(tmp_path / "coco", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    for one in notes["annotations"]:
        one["segmentation"] = [[x for point in fractions for x in point]]
    source.write_text(json.dumps(notes), encoding="utf-8")
    for path in (source, labelme(tmp_path / "in", shape)):
        with pytest.raises(
            DataError, match="look like fractions.*multiply x by the pic"
        ) as refused:
            import_annotations(path, tmp_path / "out")
        assert len(refused.value.findings) == 3


def test_cocos_numbers_may_come_from_a_table(tmp_path: Path) -> None:
    """As pandas writes them: whole numbers with .0."""
    source = coco(tmp_path / "in", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    for entry in (*notes["images"], *notes["annotations"], *notes["categories"]):
        entry |= {key: float(value) for key, value in entry.items() if type(value) is int}
    source.write_text(json.dumps(notes), encoding="utf-8")
    import_annotations(source, tmp_path / "out")
    assert overlap(tmp_path / "out") == 1


def test_pictures_that_nobody_outlined_may_be_missing(tmp_path: Path) -> None:
    """CVAT and Roboflow list them with the others; all tools' are named in one sentence."""
    source = coco(tmp_path / "in", 1, "", scale=False)
    notes = json.loads(source.read_text(encoding="utf-8"))
    notes["images"] += [{"id": 3, "file_name": "3.jpg", "width": 60, "height": 80},
                        {"id": 4, "file_name": "4.jpg"}]  # fmt: skip
    source.write_text(json.dumps(notes), encoding="utf-8")
    done = import_annotations(source, tmp_path / "out")
    said = "2 pictures left out, without an outline to ask about: 3.jpg, 4.jpg"
    assert (done.pictures, done.left_out, done.assumed) == (3, 2, (said,))
    source.write_text(json.dumps(notes | {"annotations": []}), encoding="utf-8")
    with pytest.raises(DataError, match="note: 5 pictures left out, without an outline"):
        import_annotations(source, tmp_path / "none")


def test_what_labelmes_folders_hold_besides(tmp_path: Path) -> None:
    """Classes and settings, and files whose picture is only within themselves."""
    source = labelme(tmp_path / "in", {"label": "cup", "shape_type": "polygon", "points": CORNERS})
    (source / "classes.json").write_text('["cup"]', encoding="utf-8")
    (source / "settings.json").write_text('{"theme": "dark"}', encoding="utf-8")
    (source / "0.json").rename(source / "0.JSON")
    with pytest.raises(DataError) as refused:
        import_annotations(source, tmp_path / "out")
    assert str(refused.value).count("move it out of the folder") == 2
    assert sum(import_annotations(source, tmp_path / "out", skip_broken=2).items.values()) == 3
    (source / "1.jpg").unlink()
    notes = json.loads((source / "1.json").read_text(encoding="utf-8"))
    (source / "1.json").write_text(json.dumps(notes | {"imageData": "x"}), encoding="utf-8")
    with pytest.raises(DataError, match="labelme_export_json"):
        import_annotations(source, tmp_path / "no", skip_broken=2)


def test_a_folder_without_any_json_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.txt").write_text("Pictures of cups:\n3", encoding="utf-8")
    with pytest.raises(DataError, match="annotations: got '0 pictures and no such file'"):
        import_annotations(tmp_path / "in", tmp_path / "out")


def tasks(
    folder: Path, kind: str, value: dict[str, Any], orientation: int = 1, **more: Any
) -> Path:
    """Label Studio's JSON of three pictures, each with one region; `more` is of its tasks."""
    entries = []
    for n in range(3):
        picture(folder / f"{n}.jpg", n, orientation)
        region = {"type": kind, "value": value | {kind: ["cup"]},
                  "original_width": UPRIGHT[0], "original_height": UPRIGHT[1]}  # fmt: skip
        one = {"was_cancelled": False, "result": [region]}
        data = {"note": "a text", "image": f"/data/upload/3/0123abcd-{n}.jpg"}
        entries.append({"id": n, "data": data, "annotations": [one]} | more)
    (folder / "tasks.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_label_studios_brush_as_its_editor_packs_it(tmp_path: Path, orientation: int) -> None:
    """Value by value where something is painted; the converter's own packing has runs only."""
    mask = np.zeros((UPRIGHT[1], UPRIGHT[0]), bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    value = {"format": "rle", "rle": packed(mask)}
    import_annotations(tasks(tmp_path / "in", "brushlabels", value, orientation), tmp_path / "out")
    assert overlap(tmp_path / "out") == 1


def test_label_studios_ellipse_is_turned_clockwise(tmp_path: Path) -> None:
    value = {"x": 50, "y": 50, "radiusX": 40, "radiusY": 5, "rotation": 30}
    import_annotations(tasks(tmp_path / "in", "ellipselabels", value), tmp_path / "out")
    y, x = np.mgrid[: UPRIGHT[1], : UPRIGHT[0]] + 0.5
    along = (x - 30) * np.cos(np.pi / 6) + (y - 40) * np.sin(np.pi / 6)  # y grows downwards
    off = (y - 40) * np.cos(np.pi / 6) - (x - 30) * np.sin(np.pi / 6)
    true = np.hypot(along / 24, off / 4) < 1  # 40 % of the width, 5 % of the height
    for item in read_split(tmp_path / "out", "train"):
        mask = mask_of(item) == 1
        assert (mask & true).sum() / (mask | true).sum() > 0.9


@pytest.mark.parametrize("value, more, said", [
    ({"format": "rle", "rle": [1, 2, 3]}, {}, "run lengths that break off"),
    ({"format": "rle", "rle": [0] * 40}, {}, "0 values for 60 x 80 pixels"),
    ({"x": 10, "y": 10, "width": 5, "height": 5}, {}, "got 'a rectangle: a box"),
    ({"points": [[1, 1], [2, "x"], [3, 3]]}, {}, ".result[0]: got \"could not convert"),
    ({}, {"annotations": [{"result": []}, {"result": []}]}, "2 of one picture"),
    ({}, {"annotations": "no"}, "not JSON-MIN"),
])  # fmt: skip
def test_label_studios_tasks_that_are_not_sound(
    tmp_path: Path, value: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    source = tasks(tmp_path / "in", "brushlabels", value, **more)
    with pytest.raises(DataError) as refused:
        import_annotations(source, tmp_path / "out")
    assert [said in str(one) for one in refused.value.findings] == [True] * 3  # of every task
    assert str(refused.value).count(said) == 1 and "2 more alike: tasks[1], tasks[2]" in str(
        refused.value
    )


def test_label_studios_regions_that_are_labelled_by_another_tag(tmp_path: Path) -> None:
    """<Polygon> with <Labels> gives two results; choices and texts have no outline."""
    points = {"points": [[100 * x / 60, 100 * y / 80] for x, y in CORNERS]}
    source = tasks(tmp_path / "in", "labels", points)
    entries = json.loads((source / "tasks.json").read_text(encoding="utf-8"))
    for entry in entries:
        result = entry["annotations"][0]["result"]
        result.insert(0, result[0] | {"type": "polygon", "value": points})
        result.append({"type": "choices", "value": {"choices": ["sharp"]}})
    (source / "tasks.json").write_text(json.dumps(entries), encoding="utf-8")
    import_annotations(source, tmp_path / "out")
    assert overlap(tmp_path / "out") == 1


def test_what_was_cancelled_in_label_studio_is_not_read(tmp_path: Path) -> None:
    points = {"points": [[100 * x / 60, 100 * y / 80] for x, y in CORNERS]}
    source = tasks(tmp_path / "in", "polygonlabels", points)
    entries = json.loads((source / "tasks.json").read_text(encoding="utf-8"))
    for entry in entries:
        entry["annotations"].insert(0, {"was_cancelled": True, "result": [{"value": {}}]})
    (source / "tasks.json").write_text(json.dumps(entries), encoding="utf-8")
    import_annotations(source, tmp_path / "out")
    assert overlap(tmp_path / "out") == 1


def test_labelmes_word_for_the_background_is_no_thing(tmp_path: Path) -> None:
    shapes = [{"label": label, "shape_type": "polygon", "points": CORNERS}
              for label in ("cup", "_background_")]  # fmt: skip
    with pytest.raises(DataError, match="take the shape out"):
        import_annotations(labelme(tmp_path / "in", *shapes), tmp_path / "out")


def imported(tmp_path: Path, label: str, stored: str, **options: Any) -> Imported:
    shape = {"label": label, "shape_type": "polygon", "points": CORNERS}
    return import_annotations(
        labelme(tmp_path / "in", shape, encoding=stored), tmp_path / "out", **options
    )


def asked(folder: Path) -> set[str]:
    return {text for item in read_split(folder, "train") for text in item.texts}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "shift_jis"])
def test_an_older_encoding_is_read_where_it_is_plausible(tmp_path: Path, encoding: str) -> None:
    label = "コップ" if encoding == "shift_jis" else "杯子"
    done = imported(tmp_path, label, encoding)
    assert asked(tmp_path / "out") == {label}
    assert bool(done.assumed) == (encoding not in ("utf-8", "utf-8-sig"))


def test_text_that_may_be_several_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--encoding"):
        imported(tmp_path, "стол", "cp1251")
    imported(tmp_path, "стол", "cp1251", encoding="cp1251")
    assert asked(tmp_path / "out") == {"стол"}
    with pytest.raises(ValueError, match="a name that Python knows"):
        imported(tmp_path, "cup", "utf-8", encoding="klingon")


@pytest.mark.parametrize("text", ["café", "Tür", "niño", "the dog’s “bone” – 5 °C", "œuvre"])
def test_western_words_are_read_as_such(text: str) -> None:
    assert decoded(text.encode("cp1252")) == (text, "cp1252")


@pytest.mark.parametrize("text, encoding", [
    ("杯子", "gbk"), ("桌子上的杯子", "gbk"), ("猫の耳", "shift_jis"), ("컵", "euc_kr"),
    ("стол", "cp1251"), ("красная чашка", "cp1251"), ("狗", "big5"), ("ñandú", "cp1252"),
])  # fmt: skip
def test_no_word_becomes_another_in_silence(text: str, encoding: str) -> None:
    try:
        assert decoded(text.encode(encoding))[0] == text
    except ValueError as error:
        assert "--encoding" in str(error)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_spreadsheets_of_many_countries(tmp_path: Path, separator: str, encoding: str) -> None:
    shape = {"label": "cup", "shape_type": "polygon", "points": CORNERS}
    source = labelme(tmp_path / "in", shape)
    lines = [("picture", "label", "question")]
    lines += [(f"{n}.jpg", "cup", "Which one is for café au lait?") for n in range(3)]
    text = "\r\n".join(separator.join(line) for line in lines)
    (tmp_path / "q.csv").write_bytes(text.encode(encoding))
    import_annotations(source, tmp_path / "out", questions=tmp_path / "q.csv")
    assert asked(tmp_path / "out") == {"Which one is for café au lait?"}


@pytest.mark.parametrize("column", ["picture", "image"])
def test_a_picture_may_be_called_as_lisa_segment_does(tmp_path: Path, column: str) -> None:
    source = labelme(tmp_path / "in", {"label": "cup", "shape_type": "polygon", "points": CORNERS})
    rows = [{column: f"{n}.jpg", "label": "cup", "question": "What is hot?"} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "q.csv").write_text("\n".join(table), encoding="utf-8")
    for name in ("q.csv", "q.jsonl"):
        import_annotations(source, tmp_path / f"out-{name}", questions=tmp_path / name)
        assert asked(tmp_path / f"out-{name}") == {"What is hot?"}


def test_a_question_that_nothing_answers_names_what_there_is(tmp_path: Path) -> None:
    shapes = [{"label": label, "shape_type": "polygon", "points": CORNERS}
              for label in ("cup", "saucer")]  # fmt: skip
    source = labelme(tmp_path / "in", *shapes)
    lines = ["picture,label,question", "0.jpg,cup,What holds the tea?",
             "1.jpg,saucr,What is under the cup?", "2.jpeg,cup,What holds the tea?"]  # fmt: skip
    (tmp_path / "q.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        import_annotations(source, tmp_path / "out", questions=tmp_path / "q.csv")
    said = str(refused.value)
    assert "a label outlined on 1.jpg: cup, saucer" in said and "did you mean saucer?" in said
    assert "one of the 3 pictures" in said and "did you mean 2.jpg?" in said
