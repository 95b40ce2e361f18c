"""Pictures that change under a run are noticed when it goes on, at the price of a stat each."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.data.test_unusable_entries import call
from trainer.cli import start as start_cli
from trainer.cli.console import LineProgress
from trainer.cli.planned_run import Data, PlannedRun
from trainer.data import contents
from trainer.data.contents import Contents
from trainer.data.formats.reasonseg import read_split
from trainer.data.mixture import read_training
from trainer.run.data_digests import check_data, checked_start, digests
from trainer.run.started import CannotResume, Started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PHOTOS, tmp_path / "data"))


def looked(root: Path, cache: Path | None = None) -> dict[str, dict[str, str]]:
    return digests(read_split(root, "train"), read_split(root, "val"), (), Contents(root, cache))


def repaint(picture: Path) -> None:
    """Other content of the same size, a moment later."""
    raw = bytearray(picture.read_bytes())
    raw[-20] ^= 1
    now = picture.stat()
    picture.write_bytes(raw)
    os.utime(picture, ns=(now.st_atime_ns, now.st_mtime_ns + 1))


def test_a_changed_picture_of_the_same_size_is_named(data: Path, tmp_path: Path) -> None:
    before = Started(data, tmp_path, looked(data, tmp_path))
    check_data(before, looked(data, tmp_path))
    picture = read_split(data, "train")[1].image_path
    repaint(picture)
    with pytest.raises(CannotResume) as caught:
        check_data(before, looked(data, tmp_path))
    told = str(caught.value)
    assert f"train pictures: 1 changed or new: ReasonSeg/train/{picture.name}" in told
    assert "val:" not in told and "hint: put them back as they were" in told


def test_data_that_moved_are_the_same(data: Path, tmp_path: Path) -> None:
    before = Started(data, tmp_path, looked(data))
    moved = data.rename(tmp_path / "elsewhere")
    check_data(before, looked(moved))


def test_a_picture_is_read_once_as_long_as_it_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    digest = contents.digest
    monkeypatch.setattr(contents, "digest", lambda path: read.append(path) or digest(path))
    first = looked(data, tmp_path)
    assert len(read) == len(first["train pictures"]) + len(first["val pictures"]) > 3
    assert looked(data, tmp_path) == first
    number = len(read)
    picture = read_split(data, "val")[0].image_path
    os.utime(picture, ns=(1, 1))  # touched, not changed
    assert looked(data, tmp_path) == first and read[number:] == [picture]
    (place,) = tmp_path.glob("contents-*.json")
    for damage in ("", "[1]", '{"a": 3}', '{"a": [1, 2]}'):
        place.write_text(damage)
        assert looked(data, tmp_path) == first


def test_a_cache_that_cannot_be_written_costs_only_time(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert looked(data, tmp_path / "file" / "below") == looked(data)


def test_a_run_of_an_earlier_version_goes_on_and_notices_from_then_on(
    data: Path, tmp_path: Path
) -> None:
    now = looked(data)
    old = {split: now[split] for split in ("train", "val")}  # all that they wrote
    before = Started(data, tmp_path, old)
    known = checked_start(before, now, tmp_path)
    assert known.digests == now
    repaint(read_split(data, "train")[0].image_path)
    check_data(before, looked(data))
    with pytest.raises(CannotResume, match="train pictures: 1 changed"):
        checked_start(known, looked(data), tmp_path)


def test_the_digest_of_an_item_is_that_of_earlier_versions(data: Path) -> None:
    """As of 0b439f7; else no run begun before goes on."""
    item = read_split(data, "train")[0]
    item.json_path.write_text("{}")
    item.image_path.write_bytes(b"12345")
    found = digests([replace(item, explanations=())], [])
    assert found["train"] == {item.name: "bec361de74a054e1"}


def mixed(root: Path, **rates: float) -> Any:
    return read_training(root, tiny_plan(mixture={"samples": 20, "reason_seg": 1, **rates}))


def test_of_a_mixture_annotations_count_names_and_sizes_and_of_its_reasonseg_the_pictures(
    data: Path, tmp_path: Path
) -> None:
    said = [{"from": who, "value": "some words"} for who in ("human", "gpt")]
    rows = [{"id": str(n), "image": f"{n}.png", "conversations": said} for n in range(3)]
    folder = data / "coco" / "train2017"
    folder.mkdir(parents=True)
    for n in range(3):
        Image.new("RGB", (8 + 8 * n, 8)).save(folder / f"{n}.png")
    (data / "vqa").mkdir()
    (data / "vqa" / "talks.json").write_text(json.dumps(rows))

    def now() -> dict[str, dict[str, str]]:
        return digests(mixed(data, vqa=1), [], (), Contents(data))

    before = Started(data, tmp_path, now())
    check_data(before, now())
    picture = read_split(data, "train")[0].image_path
    whole = picture.read_bytes()
    repaint(picture)
    with pytest.raises(CannotResume, match=f"ReasonSeg/train/{picture.name}"):
        check_data(before, now())
    picture.write_bytes(whole)
    check_data(before, now())
    for notes in (data / "vqa" / "talks.json", read_split(data, "train")[1].json_path):
        told = notes.read_text(encoding="utf-8")
        notes.write_text(told.replace("[", "[ ", 1), encoding="utf-8")
        with pytest.raises(
            CannotResume, match=f"train annotations: 1 changed or new: .*{notes.stem}"
        ):
            check_data(before, now())
        notes.write_text(told, encoding="utf-8")
    Image.new("RGB", (99, 99), "red").save(folder / "1.png")
    with pytest.raises(CannotResume, match="1 changed or new: .*talks: 3 pictures"):
        check_data(before, now())


def test_a_run_that_died_before_its_data_were_written_down_begins(
    data: Path, tmp_path: Path
) -> None:
    begun = Started(data, tmp_path, {})
    assert checked_start(begun, looked(data), tmp_path).digests == looked(data)
    for trained in ("last", "last-1", "best"):
        (tmp_path / trained).mkdir()
        with pytest.raises(CannotResume, match="does not say what data"):
            checked_start(begun, looked(data), tmp_path)
        (tmp_path / trained).rmdir()


def test_the_command_line_begins_such_a_run_and_refuses_other_pictures(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    cache = tmp_path / "cache"
    plan = tiny_plan(max_train_samples=2, max_val_samples=1, workers=0, cached_encoders=[])
    (run / "plan.json").write_text(plan.to_json())
    Started(data, cache, {}).write(run)  # killed before its data were looked at
    code, told = call("--resume", run)
    assert code == 0 and "no checkpoint yet: starting from the beginning" in told, told
    digested = json.loads((run / "run.json").read_text())["digests"]
    assert len(digested["train pictures"]) == 2
    (run / "summary.json").unlink()
    picture = data / next(iter(digested["val pictures"]))
    repaint(picture)
    code, told = call("--resume", run)
    assert code == 2 and f"val pictures: 1 changed or new: ReasonSeg/val/{picture.name}" in told


def test_pictures_that_have_to_be_read_are_counted(data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    pictures = [item.image_path for item in read_split(data, "train")]

    def reading() -> list[tuple[int, int]]:
        told.clear()
        Contents(data, tmp_path, lambda what, done, total: told.append((done, total))).of(pictures)
        return told

    assert reading() == [(done, len(pictures)) for done in range(1, len(pictures) + 1)]
    assert reading() == []
    repaint(pictures[0])
    assert reading() == [(1, 1)]


def test_a_run_tells_how_far_the_first_reading_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it takes longer than the patience, which is none here. Its splits share pictures."""
    monkeypatch.setattr(start_cli, "LineProgress", lambda patience: LineProgress())
    start = Started(data, tmp_path / "cache", {})
    run = PlannedRun(tiny_plan(), tmp_path / "run", start)
    train, val = read_split(data, "train"), read_split(data, "val")
    start_cli._checked(run, Data(train, val, ()))
    said = capsys.readouterr().err
    assert f"reading the pictures' bytes: {len(train)}/{len(train)}" in said
    start_cli._checked(run, Data(train, val, ()))
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: val and train share 3 pictures") and note in said
