"""Broken entries are left out on request: no more than allowed, counted, listed, and remembered."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from advisor.cli.main import app as advise_app
from profiles.skipping import ALL, VARIABLE, announce, announced, read_most
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.data.importing.test_importer import (
    HEIGHT,
    WIDTH,
    instances,
    items,
    labelme,
    picture,
    shape,
)
from tests.trainer.data.small_sets import talk, write_coco, write_refer_seg, write_vqa
from trainer.cli.planned_run import PlannedRun, read_data
from trainer.cli.train import app
from trainer.data.broken import SkippedEntries
from trainer.data.findings import DataError
from trainer.data.images import read_image
from trainer.data.importing.importer import Imported, import_annotations
from trainer.data.mixture import READERS, MixedSets, read_training
from trainer.data.polygons import IGNORE, paint_mask
from trainer.run.data_digests import check_data, digests
from trainer.run.started import CannotResume, Started

OUTLINE = {"segmentation": [[10, 10, 29, 10, 29, 24, 10, 24]]}


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def imported(source: Path, target: Path, most: int = ALL) -> Imported:
    """What an import with `most` leaves out; it may leave out no fewer."""
    with pytest.raises(DataError, match="--skip-broken"):
        import_annotations(source, target)
    return import_annotations(source, target, skip_broken=most)


@pytest.mark.parametrize(("text", "most"), [(None, 0), ("0", 0), ("12", 12), ("all", ALL)])
def test_how_many(text: str | None, most: int) -> None:
    assert read_most(text) == most


@pytest.mark.parametrize("text", ["", "-1", "1.5", "some"])
def test_how_many_it_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="--skip-broken"):
        read_most(text)


def test_broken_labelme_files_are_left_out_up_to_a_number(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(5):
        labelme(source, str(number), shape(), colour=40 * number)
    (source / "0.jpg").unlink()
    (source / "1.json").write_text("{")
    labelme(source, "2", shape(), shape(shape_type="point"), colour=80)  # a part of the answer
    code, told = call("import", source, tmp_path / "out", "--skip-broken", 2)
    assert code == 2 and told.count("--skip-broken 3") == 1 and not (tmp_path / "out").exists()
    code, told = call("import", source, tmp_path / "out", "--skip-broken", 3)
    assert code == 0 and "left out 3 broken entries" in told, told
    listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()[1:]
    assert [Path(line.partition(": ")[0]).name for line in listed] == [
        "0.json", "1.json", "2.json"]  # fmt: skip
    assert set(items(tmp_path / "out")) == {"3-cup", "4-cup"}


def test_what_is_wrong_with_all_is_not_left_out(tmp_path: Path) -> None:
    path = instances(tmp_path / "in", OUTLINE)
    path.write_text("{")
    with pytest.raises(DataError) as raised:
        import_annotations(path, tmp_path / "out", skip_broken=ALL)
    assert "--skip-broken" not in str(raised.value)


def test_boxes_among_outlines_are_ignored_there(tmp_path: Path) -> None:
    path = instances(
        tmp_path / "in", OUTLINE,
        {"segmentation": [], "bbox": [40, 5, 10, 10]}, {"bbox": [0, 0, 0, 0]},
    )  # fmt: skip
    done = imported(path, tmp_path / "out")
    assert len(done.broken) == 2 and done.items["train"] + done.items["val"] == 2
    mask = paint_mask(items(tmp_path / "out")["a-cup"].polygons, HEIGHT, WIDTH)
    assert mask[10, 45] == IGNORE and mask[15, 15] == 1 and mask[0, 0] == 0


def test_a_label_with_a_mask_that_nobody_can_place_is_left_out(tmp_path: Path) -> None:
    path = instances(
        tmp_path / "in", OUTLINE, {"segmentation": [[1, 2]]}, OUTLINE | {"category_id": 2}
    )
    imported(path, tmp_path / "out", 1)
    assert set(items(tmp_path / "out")) == {"a-other", "b-other"}


def test_sizes_and_names_that_are_null_take_their_annotations_along(tmp_path: Path) -> None:
    path = instances(tmp_path / "in", OUTLINE)
    notes = json.loads(path.read_text())
    picture(tmp_path / "in" / "c.jpg", 30)
    notes["images"] += [
        {"id": 3, "file_name": "c.jpg", "height": None, "width": None},
        {"id": 4, "file_name": None, "height": HEIGHT, "width": WIDTH},
    ]
    notes["categories"].append({"id": 5, "name": None})
    for number, (image, category) in enumerate(((3, 1), (4, 1), (1, 5)), 50):
        mark = {"id": number, "image_id": image, "category_id": category}
        notes["annotations"].append(mark | OUTLINE)
    path.write_text(json.dumps(notes))
    done = imported(path, tmp_path / "out", 3)
    assert len(done.broken) == 3 and set(items(tmp_path / "out")) == {"a-cup", "b-other"}


def dialogues(root: Path) -> Path:
    """Five: one whose picture is gone, one cut off, one a GIF called .jpg."""
    root.mkdir(exist_ok=True)
    (root / "ReasonSeg").symlink_to(PHOTOS / "ReasonSeg")
    place = root / "ocr_vqa" / "images"
    for number in (0, 2, 3, 4):
        picture(place / f"{number}.jpg", number)
    cut = place / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    frame = Image.new("P", (WIDTH, HEIGHT), 3)
    frame.save(place / "3.jpg", "GIF", save_all=True, append_images=[frame])
    write_vqa(root, *(talk("Q", "A", image=f"ocr_vqa/images/{n}.jpg") for n in range(5)))
    return root


def test_pictures_that_are_gone_from_dialogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dialogues(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    code, told = call("--check-data", root)
    assert code == 2 and told.count("--skip-broken 2") == 1
    assert "1.jpg" in told and "2.jpg" in told and "3.jpg" not in told
    code, told = call("--check-data", root, "--skip-broken", "1")
    assert code == 2 and "2 findings in" in told
    code, told = call("--check-data", root, "--skip-broken", "2")
    assert code == 0 and "left out 2 broken entries" in told and "no findings" not in told
    assert "vqa/llava_instruct: 3 pictures" in told
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 3
    (tmp_path / "skipped.txt").write_text("what I skipped today\n")
    _, told = call("--check-data", root, "--skip-broken", "2")
    assert "note: skipped.txt: exists and is not a list that lisa-preflight wrote" in told
    assert (tmp_path / "skipped.txt").read_text() == "what I skipped today\n"
    (tmp_path / "skipped.txt").unlink()
    (tmp_path / "skipped.txt").mkdir()  # stands for a folder that cannot be written
    code, told = call("--check-data", root, "--skip-broken", "2")
    assert code == 0 and "left out 2 broken entries\n" in told
    assert "note: skipped.txt: is a folder" in told
    assert read_image(root / "ocr_vqa" / "images" / "3.jpg").shape == (HEIGHT, WIDTH, 3)


def plan(**rates: float) -> Any:
    return tiny_plan(mixture={"samples": 20, "reason_seg": 1, **rates})


def test_a_training_lists_what_is_broken_in_both_of_its_splits(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(PHOTOS / "ReasonSeg", root / "ReasonSeg")
    broken = [sorted((root / "ReasonSeg" / split).glob("*.json"))[0] for split in ("train", "val")]
    for path in broken:
        path.write_text("{")
    for most in (0, 1):  # the second leaves out what is broken in val: one alone
        run = PlannedRun(tiny_plan(), tmp_path, Started(root, tmp_path, {}, skip_broken=most))
        with pytest.raises(DataError, match="--skip-broken 2") as raised:
            read_data(run)
        assert {finding.where for finding in raised.value.findings} == set(map(str, broken))
        # Without the option only headers are read, so the number may be too small.
        assert ("cannot be decoded comes on top" in str(raised.value)) == (most == 0)
    data = read_data(replace(run, started=replace(run.started, skip_broken=2)))
    assert len(data.left_out) == 2


def test_a_training_leaves_out_the_same_when_it_goes_on(tmp_path: Path) -> None:
    root = dialogues(tmp_path)
    with pytest.raises(DataError, match="--skip-broken"):
        read_training(root, plan(vqa=1), SkippedEntries())
    leave = SkippedEntries(2)
    train = read_training(root, plan(vqa=1), leave)
    assert isinstance(train, MixedSets) and len(leave.left_out) == 2
    assert len(train.kinds[1][0].pictures) == 3
    before = Started(root, tmp_path, digests(train, [], {"a"}), skip_broken=2)
    before.write(tmp_path)
    assert Started.read(tmp_path).skip_broken == 2
    check_data(before, digests(train, [], {"a"}))
    for other in ((), {"b"}, {"a", "b"}):
        with pytest.raises(CannotResume):
            check_data(before, digests(train, [], other))


def photos_with_one_cut_off(root: Path) -> Path:
    """tests/photos with one training picture that has a sound header and no more; that picture."""
    for split in ("train", "val"):
        for file in (PHOTOS / "ReasonSeg" / split).iterdir():
            place = root / "ReasonSeg" / split / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    broken = sorted((root / "ReasonSeg" / "train").glob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:2000])
    return broken


def test_the_run_remembers_what_to_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    broken = photos_with_one_cut_off(root)
    run, most = tmp_path / "run", ("--skip-broken", "all")
    common = ("--model", "tiny", "--data-dir", root, "--output-dir", run, "--epochs", "1",
              "--max-train-samples", "2", "--max-val-samples", "1",
              "--cache-dir", tmp_path / "cache", "--num-workers", "0")  # fmt: skip
    code, told = call(*common, *most)
    assert code == 0, told
    assert json.loads((run / "run.json").read_text())["skip_broken"] == ALL
    assert broken.stem in (run / "skipped.txt").read_text()
    assert broken.stem not in json.loads((run / "run.json").read_text())["digests"]["train"]
    (run / "summary.json").unlink()
    # What is known is not looked for: with 2 000 pictures decoding took 39 s, reading headers 0.8.
    monkeypatch.setattr("trainer.data.images._to_rgb", None)  # read_split would decode by it
    taken = read_training(root, tiny_plan(), SkippedEntries(ALL, known=frozenset(
        json.loads((run / "run.json").read_text())["left_out"]), root=root))  # fmt: skip
    assert isinstance(taken, list) and broken.stem not in {item.name for item in taken}
    monkeypatch.undo()
    (run / "skipped.txt").write_text("as it was")
    code, told = call("--resume", run)
    assert code == 0, told
    assert (run / "skipped.txt").read_text() == "as it was"
    assert call("--resume", run, *most)[0] == 2


def test_a_mixture_leaves_out_what_is_known_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, leave = dialogues(tmp_path), SkippedEntries(2, root=tmp_path)
    first = read_training(root, plan(vqa=1), leave)
    monkeypatch.setattr("trainer.data.mixture.sound", None)
    again = SkippedEntries(2, known=frozenset(leave.places()), root=tmp_path)
    second = read_training(root, plan(vqa=1), again)
    assert isinstance(first, MixedSets) and isinstance(second, MixedSets)
    assert [one.name for one in first.kinds[1][0].pictures] == [
        one.name for one in second.kinds[1][0].pictures]  # fmt: skip
    assert again.places() == leave.places() and len(leave.places()) == 2


def test_a_resumed_run_is_not_told_an_option_it_refuses(tmp_path: Path) -> None:
    root = tmp_path / "data"
    photos_with_one_cut_off(root)
    run = tmp_path / "run"
    code, told = call("--model", "tiny", "--data-dir", root, "--output-dir", run, "--epochs", "1",
                      "--max-train-samples", "4", "--max-val-samples", "1", "--num-workers", "0",
                      "--cache-dir", tmp_path / "cache", "--skip-broken", "1")  # fmt: skip
    assert code == 0, told
    (run / "summary.json").unlink()
    for note in sorted((root / "ReasonSeg" / "train").glob("*.json"))[1:3]:
        note.write_text("{")
    code, told = call("--resume", run)
    assert code == 2 and "hint: fix them" in told and "--skip-broken" not in told, told


def test_a_preview_leaves_broken_items_out(tmp_path: Path) -> None:
    broken = photos_with_one_cut_off(tmp_path / "data")
    sheet = tmp_path / "sheet.png"
    broken.with_suffix(".json").write_text("{")
    sheet.write_text("mine")
    code, told = call("preview", tmp_path / "data", "--out", sheet, "--skip-broken", "1")
    assert code == 2 and "is not a picture that lisa-preflight wrote" in told
    assert sheet.read_text() == "mine" and not sheet.unlink()
    code, told = call("preview", tmp_path / "data", "--out", sheet)
    assert code == 2 and "--skip-broken 1" in told
    code, told = call("preview", tmp_path / "data", "--out", sheet, "--skip-broken", "1")
    assert code == 0 and sheet.exists() and f"left out: {broken.with_suffix('.json')}" in told, told


def test_advice_about_broken_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsals_here: None
) -> None:
    """What the error names helps there, too; an answer with it is none without it."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)  # for what the command sets to be undone
    photos_with_one_cut_off(tmp_path / "data").with_suffix(".json").write_text("{")
    saved = tmp_path / "plan.json"
    saved.write_text(tiny_plan(device="cuda").to_json())
    what = ["--vram", "8GiB", "--data-dir", str(tmp_path / "data")]
    runner = CliRunner()
    result = runner.invoke(advise_app, ["forecast", str(saved), *what, "--skip-broken", "1"])
    assert result.exit_code == 0, result.output
    monkeypatch.delenv(VARIABLE)
    result = runner.invoke(advise_app, ["forecast", str(saved), *what])
    assert result.exit_code == 2 and "--skip-broken 1, or all" in result.output
    assert runner.invoke(advise_app, [*what, "--skip-broken", "x"]).exit_code == 2
    result = runner.invoke(advise_app, ["--model", "tiny", *what, "--skip-broken", "1"])
    command = " ".join(result.output.split())
    assert result.exit_code == 0 and command.count("--skip-broken 1") == 2  # advise, and train


def test_a_folder_without_its_pictures_may_go(tmp_path: Path) -> None:
    write_refer_seg(tmp_path)
    folder = write_refer_seg(tmp_path, "refclef")
    for file in (tmp_path / "refer_seg" / "images" / "saiapr_tc-12").iterdir():
        file.unlink()
    sets, (finding,) = READERS["refer_seg"](tmp_path, None)
    assert [one.name for one in sets] == ["refer_seg/refcoco"]
    assert f"remove the folder {folder} to" in finding.fix and finding.entry == str(folder)


def test_in_a_mixture_a_category_with_a_box_is_not_asked_for(tmp_path: Path) -> None:
    square = [[1, 1, 5, 1, 5, 5]]
    folder = write_coco(tmp_path, (0, 7, square), (0, 8, square), (1, 7, square))
    notes = json.loads((folder / "annotations.json").read_text())
    notes["annotations"].append(
        {"id": 9, "image_id": 0, "category_id": 7, "segmentation": [], "bbox": [1, 1, 3, 3]}
    )
    (folder / "annotations.json").write_text(json.dumps(notes))
    (data_set,), findings = READERS["sem_seg"](tmp_path, None)
    assert len(findings) == 1 and findings[0].entry is not None
    assert [len(list(one.all_masks())) for one in data_set.pictures] == [1, 1]


def test_a_png_with_a_large_profile_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (WIDTH, HEIGHT), (10, 20, 30)).save(path)
    raw, body = path.read_bytes(), b"x\0\0" + zlib.compress(b"\0" * (5 << 20))
    text = b"Comment\0\0" + zlib.compress(b"y" * (5 << 20))
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"iCCP", body), (b"zTXt", text))
    )
    path.write_bytes(raw[:33] + chunks + raw[33:])
    assert np.array_equal(read_image(path)[0, 0], (10, 20, 30))


def test_questions_about_what_is_left_out_are_left_out(tmp_path: Path) -> None:
    source, asked = tmp_path / "in", tmp_path / "q.csv"
    for number in range(3):
        labelme(source, str(number), shape(), colour=40 * number)
    (source / "0.jpg").unlink()
    lines = [f"{number}.jpg,cup,From what would one drink?" for number in range(3)]
    asked.write_text("\n".join(["picture,label,question", *lines]))
    done = import_annotations(source, tmp_path / "out", questions=asked, skip_broken=1)
    assert len(done.broken) == 1 and set(items(tmp_path / "out")) == {"1-cup", "2-cup"}


def faulty_labelme(folder: Path) -> Path:
    for number in range(5):
        labelme(folder, str(number), shape(), shape("lid"), colour=40 * number)
    (folder / "0.json").write_text("{")
    (folder / "1.jpg").unlink()
    labelme(folder, "2", shape("lid"), shape(points=[[1, 1]]), colour=80)
    return folder


def faulty_coco(folder: Path) -> Path:
    """Pictures, annotations and a category that are broken, each in another way."""
    marks = [OUTLINE | {"image_id": number, "category_id": kind}
             for number in range(3, 8) for kind in (1, 3)]  # fmt: skip
    marks += [OUTLINE | {"image_id": 7, "category_id": 9}, OUTLINE]
    path = instances(folder, *marks)
    notes = json.loads(path.read_text())
    for number in range(3, 8):
        picture(folder / f"{number}.jpg", 30 * number)
        notes["images"].append({"id": number, "file_name": f"{number}.jpg", "height": HEIGHT,
                                "width": WIDTH})  # fmt: skip
    notes["categories"] += [{"id": 3, "name": "lid"}, {"id": 9, "name": " "}]
    (folder / "3.jpg").unlink()
    notes["images"][3]["height"] = None
    notes["annotations"][4]["segmentation"] = [[1, 2]]
    notes["annotations"][6]["image_id"] = 99
    path.write_text(json.dumps(notes))
    return path


@pytest.mark.parametrize(("make", "names"), [
    (faulty_labelme, [*map(str, range(5))]), (faulty_coco, [*map(str, range(3, 8))])])  # fmt: skip
def test_the_first_number_that_is_named_is_enough(
    make: Callable[[Path], Path], names: list[str], tmp_path: Path
) -> None:
    """What is asked about broken entries does not count; what is wrong besides does at once."""
    asked = tmp_path / "q.csv"
    lines = [f"{name}.jpg,{label},What is it?" for name in names for label in ("cup", "lid")]
    lines += [f"{names[-1]}.jpg,spoon,What is it?"] * (make is faulty_labelme)
    asked.write_text("\n".join(["picture,label,question", *lines, "zzz.jpg,other,Which?"]))
    source = make(tmp_path / "in")
    code, told = call("import", source, tmp_path / "out", "--questions", asked)
    (number,) = re.findall(r"--skip-broken (\d+)", told)
    assert code == 2 and "without an outline" not in told and "goes with them" in told
    assert told.count("q.csv: line") == 1 + (make is faulty_labelme)
    code, told = call(
        "import", source, tmp_path / "out", "--questions", asked, "--skip-broken", number
    )
    assert code == 0 and f"left out {number} broken entries" in told, told


def test_no_number_is_named_that_would_leave_too_little(tmp_path: Path) -> None:
    """A detector's boxes are said once, with their count."""
    path = instances(tmp_path / "in", *[{"bbox": [1, 1, 9, 9]}] * 30)
    notes = json.loads(path.read_text())
    notes["annotations"][-1] |= {"segmentation": None, "bbox": [1, 1, 9, 9]}
    path.write_text(json.dumps(notes))
    code, told = call("import", path, tmp_path / "out")
    assert code == 2 and told.count("a box alone") == 1 and "30 more alike" in told
    assert "--skip-broken" not in told and "0 pictures would be left for train and val" in told


@pytest.mark.parametrize("key", ["images", "categories"])
def test_a_list_that_is_not_there_is_said_once(key: str, tmp_path: Path) -> None:
    path = instances(tmp_path / "in", OUTLINE, OUTLINE)
    notes = json.loads(path.read_text())
    del notes[key]
    path.write_text(json.dumps(notes))
    with pytest.raises(DataError) as refused:
        import_annotations(path, tmp_path / "out")
    (finding,) = refused.value.findings
    assert f"the list of all {key}" in finding.what


def test_a_coco_file_among_labelmes_is_not_one_entry(tmp_path: Path) -> None:
    source = instances(tmp_path / "in", OUTLINE).parent
    for number in range(3):
        labelme(source, str(number), shape(), colour=40 * number)
    with pytest.raises(DataError, match="on its own"):
        import_annotations(source, tmp_path / "out", skip_broken=ALL)


@pytest.mark.parametrize("turn", ["first", "second"])
def test_what_a_test_announces_ends_with_it(turn: str) -> None:
    assert announced() == 0, turn
    announce(3)
    assert announced() == 3
