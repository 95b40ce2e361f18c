"""Masks and outlines whose size is not the picture's: each is a finding that says which sizes."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.brush import packed
from tests.trainer.data.importing.test_tool_conventions import (
    BOX,
    STORE,
    UPRIGHT,
    labelme,
    overlap,
    picture,
    tasks,
    written,
)
from trainer.data.arrays import Size
from trainer.data.findings import DataError, Finding
from trainer.data.formats.reasonseg import read_split
from trainer.data.importing.importer import import_annotations

UPRIGHT_SIZE = UPRIGHT[::-1]  # height, width
POLYGON = [6.0, 8, 24, 8, 24, 32, 6, 32]
DATUMARO = dict.fromkeys(
    ("contributor", "date_created", "description", "url", "version", "year"), ""
)
TOOLS = ({"contributor": "Label Studio"}, {"contributor": "Label Studio Converter"}, DATUMARO,
         {}, {"contributor": "me"})  # fmt: skip


def runs(mask: np.ndarray, plain: bool = False) -> dict[str, Any]:
    """A mask's run lengths, packed as text or as a plain list."""
    if plain:
        flat = np.concatenate(([0], mask.T.ravel(), [1 - mask[-1, -1]]))
        ends = np.flatnonzero(np.diff(flat))
        return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def square(size: Size) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[5:20, 5:20] = 1
    return mask


def box_as_stored(orientation: int) -> np.ndarray:
    """BOX as a mask of the stored picture."""
    mask = np.zeros(UPRIGHT_SIZE, np.uint8)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    return np.asarray(Image.fromarray(mask).transpose(STORE[orientation]))


def coco(folder: Path, info: dict[str, str], *pictures: tuple[int, Size, object]) -> Path:
    """A file with a picture for each (orientation, size in the file, segmentation)."""
    images, notes = [], []
    for number, (orientation, size, outline) in enumerate(pictures):
        picture(folder / f"{number}.jpg", number, orientation)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": size[0],
                       "width": size[1]})  # fmt: skip
        notes.append({"id": number, "image_id": number, "category_id": 0, "iscrowd": 0,
                      "segmentation": outline, "bbox": [6, 8, 18, 24]})  # fmt: skip
    return written(folder, images, notes, info)


def findings(source: Path, target: Path) -> list[Finding]:
    with pytest.raises(DataError) as refused:
        import_annotations(source, target)
    return list(refused.value.findings)


@pytest.mark.parametrize("frame", [None, "stored", "upright"])
@pytest.mark.parametrize("info", TOOLS, ids=str)
def test_every_mask_is_imported_or_named(
    info: dict[str, str], frame: str | None, tmp_path: Path
) -> None:
    """In every tool's file, for every orientation, annotated size and kind of mask."""
    pictures: list[tuple[int, Size, object]] = []
    for orientation in (1, 3, 6):
        stored = UPRIGHT if orientation == 6 else UPRIGHT_SIZE
        for size in (UPRIGHT_SIZE, stored, (50, 50)):
            masks = [square(one) for one in (size, UPRIGHT_SIZE, stored)]
            outlines = [[POLYGON], runs(masks[0], plain=True), [POLYGON, runs(masks[0])]]
            outlines += [runs(mask) for mask in masks]
            pictures += [(orientation, size, outline) for outline in outlines]
    source = coco(tmp_path / "in", info, *pictures)
    done = import_annotations(source, tmp_path / "out", frame=frame, skip_broken=99)
    named = {int(number) for one in done.broken for number in re.findall(r"s\[(\d+)\]", one.what)}
    items = {
        int(item.image_path.stem.split("-")[0])
        for split in ("train", "val")
        for item in read_split(tmp_path / "out", split)
    }
    assert items | named == set(range(len(pictures))) and not items & named
    assert 20 < len(items) < len(pictures) - 15
    assert all("; allowed: " in one.what and one.fix for one in done.broken)


def test_run_lengths_in_label_studios_coco_are_not_stretched(tmp_path: Path) -> None:
    """Its polygons are in parts of the upright picture; what run lengths are in, nothing says."""
    width, height = UPRIGHT[::-1]
    stored = runs(box_as_stored(6))
    source = coco(tmp_path / "in", TOOLS[0], *[(6, (height, width), stored)] * 3)
    found = findings(source, tmp_path / "out")
    assert len(found) == 3 and str(found[0]).endswith(
        "annotations[0].segmentation: got 'run lengths of size [60, 80] for a picture of "
        "[80, 60], upright'; allowed: on a rotated picture only polygons, as Label Studio exports "
        "them to COCO. Fix: export as JSON instead, or say --frame stored if no outline is upright."
    )
    import_annotations(source, tmp_path / "out", frame="stored")
    assert overlap(tmp_path / "out") == 1


@pytest.mark.parametrize("plain", [False, True])
def test_run_lengths_of_another_size_say_both_sizes(plain: bool, tmp_path: Path) -> None:
    other = runs(np.tile(square((70, 60)), (1, 2)), plain)  # whose counts alone fill a message
    other["size"] = [70, 120]
    source = coco(tmp_path / "in", {}, (1, UPRIGHT_SIZE, other), (1, UPRIGHT_SIZE, [POLYGON]))
    (found,) = findings(source, tmp_path / "out")
    assert re.match(r"annotations\[0\].segmentation: got .size \[70, 120\], counts ", found.what)
    assert "allowed: run lengths with size [80, 60], the picture's" in found.what
    assert "add up to its 4800 pixels" in found.what


@pytest.mark.parametrize(
    ("more", "sound"), [(0, True), (1, True), (-1, True), (2, False), (-2, False)]
)
def test_labelmes_mask_is_as_large_as_its_box(more: int, sound: bool, tmp_path: Path) -> None:
    """But for a pixel: tools differ on whether the last one is part of the box."""
    left, top, right, bottom = BOX
    file = BytesIO()
    Image.new("L", (right - left + more, bottom - top), 255).save(file, "PNG")
    shape = {
        "label": "cup",
        "shape_type": "mask",
        "mask": base64.b64encode(file.getvalue()).decode(),
        "points": [[left + 0.4, top + 0.4], [right - 0.6, bottom - 0.6]],
    }
    source = labelme(tmp_path / "in", shape)
    if sound:
        import_annotations(source, tmp_path / "out")
        assert overlap(tmp_path / "out") > 0.9
        return
    one = findings(source, tmp_path / "out")[0]
    assert f"shapes[0].mask: cannot be read: {18 + more} x 24 pixels for a box of 18" in one.what
    assert "allowed: a PNG in base64, as large as the box of its points" in one.what


def test_label_studios_brush_of_another_size(tmp_path: Path) -> None:
    value = {"format": "rle", "rle": packed(square((50, 60)))}
    found = findings(tasks(tmp_path / "in", "brushlabels", value), tmp_path / "out")
    assert len(found) == 3
    assert "tasks[0].result[0]: got " in found[0].what
    assert "12000 values for 60 x 80 pixels of RGBA" in found[0].what


def test_label_studios_regions_of_another_size(tmp_path: Path) -> None:
    value = {"points": [[10, 10], [40, 10], [40, 40]]}
    source = tasks(tmp_path / "in", "polygonlabels", value)
    document = json.loads((source / "tasks.json").read_text(encoding="utf-8"))
    region = document[1]["annotations"][0]["result"][0]
    region["original_width"] = 61
    (source / "tasks.json").write_text(json.dumps(document), encoding="utf-8")
    (found,) = findings(source, tmp_path / "out")
    assert "tasks[1].(height, width): got '(80, 61)'; allowed: (80, 60)" in found.what
