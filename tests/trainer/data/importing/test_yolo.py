"""Ultralytics' folders of outlines, as its tools, Roboflow, CVAT and Label Studio write them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from typer.testing import CliRunner

from tests.trainer.data.importing.test_importer import (
    HEIGHT,
    WIDTH,
    complaints,
    items,
    painted,
    picture,
)
from trainer.cli.train import app
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import check_data, read_split
from trainer.data.images import read_image
from trainer.data.importing.importer import Imported, import_annotations

SQUARE = "0.2 0.25 0.5 0.25 0.5 0.6 0.2 0.6"  # the square of the fixtures, to a pixel
NAMES = "names:\n  0: cup\n  1: no\n"  # YAML alone would read `no` as False
ULTRALYTICS = "path: /home/someone/datasets/cups\ntrain: images/train\nval: images/val\n" + NAMES


def label(folder: Path, name: str, *rows: str, colour: int = 0) -> None:
    """A picture in `images` and its file in `labels`, both below the same place."""
    picture(folder / name.format("images", "jpg"), colour)
    path = folder / name.format("labels", "txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def pictures_of(folder: Path, place: Callable[[str], str], splits: tuple[str, str]) -> Path:
    for number in range(4):
        label(folder, f"{place(splits[number % 2])}/{number}.{{1}}", f"{number // 2} {SQUARE}",
              colour=50 * number)  # fmt: skip
    return folder


def ultralytics(folder: Path) -> Path:
    (pictures_of(folder, "{{0}}/{}".format, ("train", "val")) / "data.yaml").write_text(ULTRALYTICS)
    return folder


def sets_of_its_own(folder: Path) -> Path:
    """Folders that only the YAML calls train and val, and no `path`."""
    (pictures_of(folder, "{{0}}/{}".format, ("day", "night")) / "cups.yml").write_text(
        f"train: ./images/day\nval:\n  - 'C:\\cups\\images\\night'\n{NAMES}")  # fmt: skip
    return folder


def roboflow(folder: Path) -> Path:
    (pictures_of(folder, "{}/{{0}}".format, ("train", "valid")) / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['cup', 'no']\n\nroboflow:\n  workspace: w\n")  # fmt: skip
    (folder / "README.roboflow.txt").write_text("cups - v1\n====\n")
    return folder


def cvat(folder: Path) -> Path:
    """Its paths in the lists start one folder higher; the same names are in both subsets."""
    for number, subset in enumerate(("train", "val")):
        for index in range(2):
            label(folder, f"{{0}}/{subset}/{index}.{{1}}", f"{index} {SQUARE}",
                  colour=60 * number + 30 * index)  # fmt: skip
        (folder / f"{subset}.txt").write_text(f"data/images/{subset}/0.jpg\n"
                                              f"data/images/{subset}/1.jpg\n")  # fmt: skip
    (folder / "data.yaml").write_text(f"path: ./\ntrain: train.txt\nval: val.txt\n{NAMES}")
    return folder


def autosplit(folder: Path) -> Path:
    """Ultralytics' own tool: all pictures in one folder, two lists."""
    for number in range(4):
        label(folder, f"{{0}}/{number}.{{1}}", f"{number // 2} {SQUARE}", colour=50 * number)
    for split, those in (("train", "02"), ("val", "13")):
        (folder / f"autosplit_{split}.txt").write_text(
            "".join(f"./images/{n}.jpg\n" for n in those)
        )
    (folder / "data.yaml").write_text(
        f"train: autosplit_train.txt\nval: autosplit_val.txt\n{NAMES}")  # fmt: skip
    return folder


@pytest.mark.parametrize("make", [ultralytics, sets_of_its_own, roboflow, cvat, autosplit])
def test_folders_as_tools_write_them(make: Callable[[Path], Path], tmp_path: Path) -> None:
    done = import_annotations(make(tmp_path / "in"), tmp_path / "out")
    assert done.items == {"train": 2, "val": 2} and done.left_out == 0
    assert any("own split is kept (train, val)" in one for one in done.assumed)
    found = items(tmp_path / "out")
    assert sorted(one.rpartition("-")[2] for one in found) == ["cup", "cup", "no", "no"]
    corners = [x * (HEIGHT if at % 2 else WIDTH) for at, x in
               enumerate(map(float, SQUARE.split()))]  # fmt: skip
    wanted = coco.decode(coco.frPyObjects([corners], HEIGHT, WIDTH))[:, :, 0]
    assert all(np.array_equal(painted(one), wanted) for one in found.values())


def test_label_studios_pictures_lie_elsewhere(tmp_path: Path) -> None:
    """It writes no YAML, JSON that is no annotation, and puts a hash before the names."""
    pictures_of(tmp_path / "in", lambda split: "{0}", ("", ""))
    for path in sorted((tmp_path / "in" / "labels").iterdir()):
        path.rename(path.with_name(f"0123abcd-{path.name}"))
    (tmp_path / "in" / "images").rename(tmp_path / "shots")
    (tmp_path / "in" / "classes.txt").write_text("cup\nno\n")
    (tmp_path / "in" / "notes.json").write_text('{"categories": [], "info": {}}')
    import_annotations(tmp_path / "in", tmp_path / "out", pictures=tmp_path / "shots")
    assert sorted(items(tmp_path / "out")) == ["0-cup", "1-cup", "2-no", "3-no"]
    told = complaints(tmp_path / "in")
    assert len(told) == 4 and all("picture: got 'no such file'" in one for one in told)


@pytest.mark.parametrize(("frame", "turned"), [(None, True), ("stored", False)])
@pytest.mark.parametrize("orientation", [3, 6])
def test_outlines_are_on_the_upright_picture(
    orientation: int, frame: str | None, turned: bool, tmp_path: Path
) -> None:
    folder = ultralytics(tmp_path / "in")
    picture(folder / "images" / "train" / "0.jpg", 200, orientation)
    (folder / "labels" / "train" / "0.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    done = import_annotations(folder, tmp_path / "out", frame=frame)
    mask = painted(items(tmp_path / "out")["images-train-0-cup"])
    assert mask.shape == read_image(folder / "images" / "train" / "0.jpg").shape[:2]
    assert bool(mask[2, 2]) == turned and any("upright" in one for one in done.assumed) == turned


def test_blank_files_and_pictures_without_one_are_left_out(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "in")
    label(folder, "{0}/train/blank.{1}", colour=99)
    picture(folder / "images" / "val" / "none.jpg", 98)
    done = import_annotations(folder, tmp_path / "out")
    assert done.left_out == 2 and any(
        "images/val/none.jpg, images/train/blank.jpg" in one for one in done.assumed
    )


ROWS = [
    ("0 0.5 0.5 0.2 0.2", "outline: got 'a box alone'"),
    ("0 0.5 0.5 0.2 0.2 0.91", "outline: got 'a box alone'"),
    ("0 0.1 0.1 0.4", "row: got '0 0.1 0.1 0.4'; allowed: the number of a class"),
    ("0 0.1 0.1 0.4 0.4 0.2 x", "row: got '0 0.1 0.1 0.4 0.4 0.2 x'"),
    ("0 0.1 0.1 0.4 0.4 nan 0.3", "row: got"),
    ("2 0.1 0.1 0.4 0.1 0.4 0.4", "class: got '2'; allowed: a number of 0, 1"),
    ("-1 0.1 0.1 0.4 0.1 0.4 0.4", "class: got '-1'"),
    ("0 6 4 24 4 24 16", "row: got 'numbers from 4 to 24'; allowed: fractions of the picture"),
    ("0 0.1 0.1 0.1 0.1 0.1 0.1 1", "row: got"),
]


def test_broken_rows_are_named_by_file_and_line_and_may_be_left_out(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "in")
    label(folder, "{0}/train/x.{1}", f"0 {SQUARE}", *(row for row, _ in ROWS), colour=88)
    told = complaints(folder)
    for line, (_, said) in enumerate(ROWS, 2):
        assert any(f"labels/train/x.txt: line {line}: {said}" in one for one in told), line
    assert len(told) == len(ROWS)
    done = import_annotations(folder, tmp_path / "out", skip_broken=len(ROWS))
    assert len(done.broken) == len(ROWS) and "images-train-x-cup" in items(tmp_path / "out")


def test_a_detectors_boxes_are_said_once(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "in")
    for path in (folder / "labels").rglob("*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n" * 2)
    result = CliRunner().invoke(app, ["import", str(folder), str(tmp_path / "out")])
    assert result.exit_code == 2 and result.output.count("a box alone") == 1
    assert "7 more alike" in result.output and "--skip-broken" not in result.output


def missing(folder: Path) -> None:
    (folder / "images" / "val" / "1.jpg").unlink()
    picture(folder / "images" / "train" / "1.jpg", 77)  # another picture of the same name


def twice(folder: Path) -> None:
    shutil.copy(folder / "images" / "val" / "1.jpg", folder / "images" / "val" / "1.PNG")


@pytest.mark.parametrize(("change", "said"), [
    (missing, "labels/val/1.txt: picture: got 'no such file'"),
    (twice, "labels/val/1.txt: picture: got '2: "),
    (lambda folder: (folder / "data.yaml").write_text("names: []\n"), "data.yaml: names: got 'no"),
    (lambda folder: (folder / "data.yaml").write_text("names: {a: cup}\n"), "data.yaml: cannot"),
    (lambda folder: (folder / "data.yaml").write_text("names: ['', cup]\n"), "names[0].name: got"),
    (lambda folder: (folder / "data.yaml").write_text('names: ["\\ud83d\\ude00", no]\n'),
     ", in whole characters"),  # YAML makes two halves of it
    (lambda folder: (folder / "data.yaml").write_text("nc: 2\n"), "data.yaml: names: got 'no name"),
    (lambda folder: (folder / "data.yaml").write_text("names:\n\t0: cup"), "data.yaml: cannot"),
    (lambda folder: (folder / "data.yaml").write_text(f"{NAMES}kpt_shape: [4, 2]\n"),
     "labels of key points"),
    (lambda folder: (folder / "labels" / "val" / "1.txt").write_text(f"{'9' * 5000} {SQUARE}"),
     "labels/val/1.txt: line 1: class: got '9999"),
    (lambda folder: (folder / "labels" / "val" / "1.txt").write_bytes(b"\xff\xfe\x81"), "1.txt: "),
])  # fmt: skip
def test_folders_that_are_not_sound(
    change: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folder = ultralytics(tmp_path / "in")
    change(folder)
    (told,) = complaints(folder)
    assert said in told, told


ROW = f"0 {SQUARE}"


@pytest.mark.parametrize(("name", "content"), [
    ("data.yaml", "train: /a/images/train\nval: /a/images/val\nnc: 9\nnames: [cup, 'no']\n"),
    ("data.yaml", "train: [../images/train]\nval: ../images/val\nnames: {0: cup, 1: no, 7: x}"),
    ("data.yaml", "\ufeff" + ULTRALYTICS.replace("\n", "\r\n")),
    ("labels/train/0.txt", f"{ROW}  \r\n\r\n"),
    ("labels/train/0.txt", f"\ufeff{ROW}".replace(" ", "\t")),
    ("labels/train/0.txt", f"0.0 {SQUARE}\n0 {SQUARE}\n\f"),
    ("labels/train.cache", "\x80\x04"),
    ("classes.txt", "plate\nfork\n"),
])  # fmt: skip
def test_spellings_of_a_folder_that_mean_the_same(name: str, content: str, tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "in")
    (folder / name).write_bytes(content.encode())
    done = import_annotations(folder, tmp_path / "out")
    assert done.items == {"train": 2, "val": 2} and done.left_out == 0
    assert sorted(one.rpartition("-")[2] for one in items(tmp_path / "out")) == [
        "cup", "cup", "no", "no"]  # fmt: skip


@pytest.mark.parametrize("make", [ultralytics, roboflow])
def test_who_checks_the_folder_itself_is_told_the_way(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make(tmp_path / "in")
    told = {finding.fix for finding in check_data(folder)}
    assert told == {f"lisa-train import {folder} NEW makes it of the annotations there"}


@pytest.mark.parametrize("below", ["data.yaml", "labels", "."])
def test_its_parts_mean_the_folder(below: str, tmp_path: Path) -> None:
    done: Imported = import_annotations(ultralytics(tmp_path / "in") / below, tmp_path / "out")
    assert done.pictures == 4 and len(read_split(tmp_path / "out", "val")) == 2


def test_labels_without_their_classes_say_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds both data\.yaml \(or classes\.txt\)"):
        import_annotations(ultralytics(tmp_path / "in") / "labels" / "train", tmp_path / "out")
