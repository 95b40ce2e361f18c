"""The source's own split is kept, and no picture is in two: not as a copy, not as a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.findings import DataError
from trainer.data.importing.importer import Imported, import_annotations

HASH = "0d3d2b3e8a4f4c5b9e1f2a3b4c5d6e7f"


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def coco(path: Path, names: list[str], folder: Path | None = None, seed: int = 0) -> None:
    """A COCO file of these pictures, each with a polygon; pictures are made in `folder`."""
    for number, name in enumerate(names):
        picture((folder or path.parent) / name, seed + number)
    numbered = list(enumerate(names))
    document: dict[str, Any] = {
        "images": [{"id": n, "file_name": name, "height": 24, "width": 32} for n, name in numbered],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 10, 8],
                         "segmentation": [[2, 2, 12, 2, 12, 10, 2, 10]], "iscrowd": 0}
                        for n, _ in numbered],
        # As Roboflow writes them: the first is the project's, and nothing has it.
        "categories": [{"id": 0, "name": "cup", "supercategory": "none"},
                       {"id": 1, "name": "cup", "supercategory": "cup"}],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def roboflow(name: str, version: int = 0) -> str:
    return f"{name}_jpg.rf.{version}{HASH[1:]}.jpg"


def imported(source: Path, **options: Any) -> tuple[Imported, dict[str, set[str]]]:
    """What an import says, and the recorded names of each split's pictures."""
    target = source.parent / "out"
    done = import_annotations(source, target, **options)
    there = {
        folder.name: {json.loads(one.read_bytes())["picture"] for one in folder.glob("*.json")}
        for folder in (target / "ReasonSeg").iterdir()
    }
    return done, there


def test_roboflows_own_split_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "cups.v1i.coco"
    train = [roboflow("a", 1), roboflow("a", 2), roboflow("b")]
    coco(source / "train" / "_annotations.coco.json", train)
    coco(source / "valid" / "_annotations.coco.json", [roboflow("c")], seed=10)
    coco(source / "test" / "_annotations.coco.json", [roboflow("d")], seed=20)
    (source / "README.roboflow.txt").write_text("cups - v1", encoding="utf-8")
    done, there = imported(source, val=0.5)
    assert there["train"] == {f"train/{name}" for name in train}
    assert there["val"] == {f"valid/{roboflow('c')}"} and len(there["test"]) == 1
    assert done.assumed == (
        "the source's own split is kept (train, val, test); --val and --test are not used",
    )


def test_what_the_source_lacks_is_drawn_from_its_train(tmp_path: Path) -> None:
    source = tmp_path / "in"
    coco(source / "train" / "_annotations.coco.json", [roboflow(c) for c in "abcdefgh"])
    coco(source / "test" / "_annotations.coco.json", [roboflow("z")], seed=20)
    done, there = imported(source, val=0.25)
    assert (len(there["train"]), len(there["val"])) == (6, 2)
    assert there["test"] == {f"test/{roboflow('z')}"}
    assert "(train, test); val drawn from its train" in done.assumed[0]


def test_copies_in_train_and_val_are_left_out_of_train(tmp_path: Path) -> None:
    """Versions called alike in two splits are noted: Roboflow splits first, they may differ."""
    source = tmp_path / "in"
    coco(source / "train" / "_annotations.coco.json", [roboflow("a"), roboflow("b"), "x.jpg"])
    coco(source / "valid" / "_annotations.coco.json", ["copy.jpg", roboflow("x"), roboflow("b", 7)])
    picture(source / "valid" / roboflow("x"), 30)
    picture(source / "valid" / roboflow("b", 7), 31)
    done, there = imported(source)
    assert there["train"] == {f"train/{roboflow('b')}", "train/x.jpg"} and len(there["val"]) == 3
    said = "1 picture left out, since the source has a copy in val or test"
    assert done.assumed[1] == f"{said}: train/{roboflow('a')}"
    assert "in several splits of the source: b_jpg" in done.assumed[2]


@pytest.mark.parametrize("seed", range(4))
def test_versions_of_a_picture_stay_together(tmp_path: Path, seed: int) -> None:
    """In the file of one split, or of a data set that Roboflow did not split."""
    source = tmp_path / "in" / "train"
    names = [roboflow(c, version) for c in "abcd" for version in range(3)]
    coco(source / "_annotations.coco.json", names)
    done, there = imported(source, val=0.25, test=0.25, seed=seed)
    originals = {split: {name[0] for name in those} for split, those in there.items()}
    assert sorted(sum(map(list, originals.values()), [])) == list("abcd")
    assert {split: len(those) for split, those in there.items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }
    assert "12 pictures are Roboflow's versions of 4" in done.assumed[0]


def test_versions_of_one_picture_are_too_few_to_split(tmp_path: Path) -> None:
    source = tmp_path / "in"
    coco(source / "_annotations.coco.json", [roboflow("a", n) for n in range(3)])
    with pytest.raises(DataError, match="asked about: got 1; allowed: 2 or more: train, val need"):
        imported(source)


@pytest.mark.parametrize("pictures", ["images/{}", "images/{}2017", "{}2017"])
def test_files_named_after_their_split(tmp_path: Path, pictures: str) -> None:
    """CVAT's and Datumaro's subsets, and COCO's own layout; pictures of two may be called alike."""
    source, year = tmp_path / "in", "2017" if "2017" in pictures else ""
    for number, split in enumerate(("train", "val")):
        coco(source / "annotations" / f"instances_{split}{year}.json", ["0.png", "sub/0.png"],
             source / pictures.format(split), seed=10 * number)  # fmt: skip
    done, there = imported(source)
    for split in ("train", "val"):
        folder = pictures.format(split)
        assert there[split] == {f"{folder}/0.png", f"{folder}/sub/0.png"}
    assert done.pictures == 4


def test_cvats_pictures_called_alike_in_two_folders(tmp_path: Path) -> None:
    source = tmp_path / "in"
    names = ["monday/0.png", "tuesday/0.png"]
    coco(source / "annotations" / "instances_default.json", names, source / "images" / "default")
    _, there = imported(source)
    assert there["train"] | there["val"] == set(names)


@pytest.mark.parametrize("tool", ["labelme", "coco"])
def test_folders_of_pictures_may_be_the_split(tmp_path: Path, tool: str) -> None:
    source = tmp_path / "in"
    names = ["train/a.png", "train/b.png", "train/c.png", "VALID/d.png"]
    if tool == "coco":
        coco(source / "all.json", names)
    for number, name in enumerate(names if tool == "labelme" else ()):
        picture(source / name, number)
        shape = {"label": "cup", "points": [[2, 2], [12, 2], [12, 10]], "shape_type": "polygon"}
        note = {"imagePath": name.split("/")[1], "shapes": [shape]}
        (source / name).with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")
    done, there = imported(source)
    assert there == {"train": set(names[:3]), "val": {names[3]}}
    assert "own split is kept (train, val)" in done.assumed[0]


def test_folders_of_some_pictures_are_no_split(tmp_path: Path) -> None:
    source = tmp_path / "in"
    coco(source / "all.json", ["train/a.png", "val/b.png", "c.png"])
    done, there = imported(source)
    assert sum(map(len, there.values())) == 3 and len(there["val"]) == 1
    assert "folders are called train and val, but not all pictures" in done.assumed[0]


def test_a_picture_in_two_splits_by_its_name_is_a_mistake(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for split in ("train", "val"):
        coco(source / f"{split}.json", ["a.png", f"{split}.png"])
    with pytest.raises(DataError, match="take it out of one of the splits"):
        imported(source)
