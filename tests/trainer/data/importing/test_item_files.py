"""Items are written where their pictures will most likely be, and end where they belong."""

import os
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from trainer.data.importing.item_files import ItemFiles
from trainer.data.importing.outlines import Drawing
from trainer.data.importing.splits import Splits


def write(files: ItemFiles, name: str, *labels: str, content: bytes | None = None) -> None:
    shapes = {label: "[]" for label in labels}
    texts = {label: [label] for label in labels}
    drawing = Drawing(name, Path(name), Path("notes.json"), shapes)
    files.write(drawing, name.encode() if content is None else content, texts, False)


def items(root: Path, split: str) -> set[str]:
    return {path.stem for path in (root / split).glob("*.json")}


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.0), (0.2, 0.3), (0.001, 0.001)])
def test_pictures_end_in_the_split_of_their_place(val: float, test: float, tmp_path: Path) -> None:
    files = ItemFiles(tmp_path / "R", Splits(val, test, seed=3))
    names = [f"{number}.jpg" for number in range(300)]
    for name in names:
        write(files, name, "cup", "dish")

    def place(name: str) -> str:
        content = sha256(name.encode()).hexdigest()
        return sha256(f"3 {content}".encode()).hexdigest()

    order = sorted(names, key=place)
    first, last = max(1, round(300 * val)), 300 - (max(1, round(300 * test)) if test else 0)
    ends = {"train": order[first:last], "val": order[:first]}
    if test:
        ends["test"] = order[last:]
    assert files.settle() == {split: 2 * len(there) for split, there in ends.items()}
    for split, there in ends.items():
        expected = {f"{name[:-4]}-{label}" for name in there for label in ("cup", "dish")}
        assert items(tmp_path / "R", split) == expected
        assert {path.stem for path in (tmp_path / "R" / split).glob("*.jpg")} == expected


def test_few_pictures_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ItemFiles(tmp_path / "R", Splits(0.2, 0.2, seed=0))
    for number in range(500):
        write(files, f"{number}.jpg", "cup")
    moved: Counter[str] = Counter()
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (moved.update([a[-4:]]), rename(a, b)))
    files.settle()
    assert 0 < moved[".jpg"] < 40  # of 200 that do not belong into train


def test_names_differ_in_all_splits_and_on_systems_without_case(tmp_path: Path) -> None:
    files = ItemFiles(tmp_path / "R", Splits(0.5, 0.0, seed=0))
    for number, name in enumerate(("a b.jpg", "a-b.jpg", "A_b.jpg", "A-B.jpg")):
        write(files, name, "cup", "Cup", content=bytes([number % 2]) * 9)
    files.settle()
    there = [name for split in ("train", "val") for name in items(tmp_path / "R", split)]
    assert sorted(there) == sorted(["a-b-cup", "a-b-Cup-2", "a-b-cup-3", "a-b-Cup-4", "A_b-cup",
                                    "A_b-Cup-2", "A-B-cup-5", "A-B-Cup-6"])  # fmt: skip
    assert len({name.casefold() for name in there}) == 8


def test_a_disk_that_takes_a_part_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, wrote = ItemFiles(tmp_path / "R", Splits(0.1, 0.0, 0)), os.write
    monkeypatch.setattr(os, "write", lambda file, content: wrote(file, content[:5]))
    write(files, "a.jpg", "cup", content=b"a picture of a cup")
    (picture,) = (tmp_path / "R").rglob("*.jpg")
    assert picture.read_bytes() == b"a picture of a cup"
    assert picture.with_suffix(".json").read_bytes().endswith(b"}\n")
