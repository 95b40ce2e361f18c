"""What hostile cases found, one by one: each took a traceback, minutes or gigabytes before."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save, save_file

from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.text import brief
from tests.fuzz import surfaces
from tests.fuzz.hostile import png
from tests.fuzz.surfaces import COCO, LABELME, PICTURE, _json, reason_seg
from trainer.answer.questions import read_questions
from trainer.answer.trained_model import find_trained
from trainer.convert.checkpoint_folder import Source, read_object
from trainer.convert.convert import Conversion, choose
from trainer.convert.export import card, facts_of
from trainer.data import polygons
from trainer.data.feature_cache import BadEntry, FeatureCache, read_entry
from trainer.data.findings import DataError, Report
from trainer.data.formats.coco import read_coco
from trainer.data.formats.reasonseg import check_data, read_split
from trainer.data.formats.refer_seg import read_references
from trainer.data.images import LONGEST_SIDE, read_image
from trainer.data.importing.importer import import_annotations
from trainer.data.json_fields import LARGEST_FILE, load_json
from trainer.data.picture_paths import picture_in
from trainer.data.polygons import Polygon, painted_area
from trainer.model.families.llava_sam.family import FAMILY
from trainer.model.families.llava_sam.pictures import LONGEST, clip_pixels
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.weights import WeightsError
from trainer.run import checkpoint
from trainer.run.checkpoint import CheckpointError
from trainer.run.checkpoint_files import damage, read_facts
from trainer.run.folder import STATE, TRAINED, is_complete
from trainer.run.started import CannotResume, Started

DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000


# ------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize("value", [DIGITS, DEEP, "Infinity", "1e999", "1000001"])
@pytest.mark.parametrize("key", ["effective_batch", "schedule.epochs"])
def test_a_plan_with_a_monstrous_number_is_refused_briefly(key: str, value: str) -> None:
    with pytest.raises(PlanError) as by_hand:
        Plan().override([f"{key}={value}"])
    outer, _, inner = key.partition(".")
    with pytest.raises(PlanError) as in_file:
        Plan.from_json(
            f'{{"{outer}": {{"{inner}": {value}}}}}' if inner else f'{{"{key}": {value}}}'
        )
    for caught in (by_hand, in_file):
        assert len(str(caught.value)) < 1000


def test_an_infinite_rate_is_refused_since_it_cannot_be_written() -> None:
    """pydantic writes it as null, and the run's own plan.json could not be read any more."""
    for assignment in ("schedule.learning_rate=Infinity", "lora.alpha=Infinity"):
        with pytest.raises(PlanError, match="finite"):
            Plan().override([assignment])


def test_numbers_that_multiply_beyond_any_text_are_refused() -> None:
    document = f'{{"micro_batch": {"9" * 4000}, "accumulation": {"9" * 4000}}}'
    with pytest.raises(PlanError, match="micro_batch"):
        Plan.from_json(document)


def test_processes_may_not_be_nothing() -> None:
    with pytest.raises(PlanError, match="processes"):
        Plan().override(["processes=null"])


def test_a_table_that_was_set_to_a_value_has_no_settings() -> None:
    with pytest.raises(PlanError, match="schedule: is set as a whole and in part .got true"):
        Plan().override(["schedule=true", "schedule.epochs=2"])


def test_a_plan_with_thousands_of_faults_is_told_in_a_hundred_lines() -> None:
    with pytest.raises(PlanError) as caught:
        Plan().override(["cached_encoders=" + json.dumps([[1, 2]] * 20_000)])
    assert str(caught.value).splitlines()[100:] == ["  - … and 19900 more findings"]


def test_half_a_character_in_a_name_can_still_be_logged() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json('{"\\ud800": 1, "model": "\\ud800"}')
    str(caught.value).encode()


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_what_is_brief_is_what_repr_says(value: object) -> None:
    text = brief(value, 40)
    assert len(text) <= 40
    assert len(repr(value)) > 20 or text == repr(value)


def test_what_is_brief_is_so_for_whatever_is_large() -> None:
    entwined: list[Any] = []
    for _ in range(100):
        entwined = [entwined, entwined]
    assert all(len(brief(value)) <= 60 for value in (entwined, 10**9999, "x" * 10**6, [1] * 10**6))


# -------------------------------------------------------------------------------------- polygons


def crossing(points: int) -> list[list[float]]:
    """An outline that crosses itself everywhere."""
    rng = np.random.default_rng(0)
    return (rng.random((points, 2)) * [64, 48]).tolist()


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each polygon that is painted: how many points, and pixels of its canvas."""
    seen: list[tuple[int, int]] = []
    real = polygons._paint

    def paint(mask: NDArray[np.uint8], polygon: Polygon, value: int) -> NDArray[np.uint8]:
        assert len(polygon.points) < 45_000  # takes minutes
        seen.append((len(polygon.points), mask.size))
        return real(mask, polygon, value)

    monkeypatch.setattr(polygons, "_paint", paint)
    return seen


def test_an_outline_that_takes_minutes_to_paint_is_refused(
    tmp_path: Path, painted: list[tuple[int, int]]
) -> None:
    """OpenCV takes 66 s over 45 000 points that cross each other everywhere, on 64 x 48 pixels."""
    shape = {"label": "target", "points": crossing(45_000)}
    annotation = {"text": "x", "is_sentence": False, "shapes": [shape]}
    (finding,) = check_data(reason_seg(tmp_path, _json(annotation)))
    assert "45000 points, too much to paint" in str(finding)
    annotation["shapes"] = [{"label": "target", "points": crossing(1500)}] * 20
    (finding,) = check_data(reason_seg(tmp_path / "many", _json(annotation)))
    assert "too much to paint" in str(finding) and "shapes[0]" not in str(finding)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(PICTURE)
    notes = LABELME | {"shapes": [{"label": "cup", "points": crossing(45_000)}]}
    (tmp_path / "in" / "1.json").write_bytes(_json(notes))
    with pytest.raises(DataError, match="too much to paint"):
        import_annotations(tmp_path / "in", tmp_path / "out")
    assert len(painted) < 10 and {points for points, _ in painted} == {1500}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-90, 150), st.floats(-90, 150)), min_size=3, max_size=8),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_the_area_on_a_small_canvas_is_that_on_the_whole(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    corners = [np.array(points).astype(np.int32)]
    mask = np.zeros((height, width), np.uint8)
    cv2.polylines(mask, corners, True, 1, 1)
    cv2.fillPoly(mask, corners, 1)
    assert painted_area(Polygon("target", np.array(points)), height, width) == mask.sum()


def test_many_small_shapes_on_a_large_picture_are_read_at_once(
    tmp_path: Path, painted: list[tuple[int, int]]
) -> None:
    """Each took a canvas of the picture's size: 2000 of them on 80 megapixels minutes."""
    shapes = [{"label": "target", "points": [[x, 5], [x + 3, 5], [x, 9]]} for x in range(2000)]
    annotation = {"text": "x", "is_sentence": False, "shapes": shapes}
    root = reason_seg(tmp_path, _json(annotation))
    (root / "ReasonSeg" / "train" / "a.png").write_bytes(png(8900, 8900, 1))
    assert len(read_split(root, "train")[0].polygons) == 2000
    assert sum(pixels for _, pixels in painted) < 2000 * 100


def test_an_annotation_with_thousands_of_faults_is_told_in_a_hundred_lines(tmp_path: Path) -> None:
    annotation = surfaces.ANNOTATION | {"text": [[n, 2] for n in range(20_000)]}
    with pytest.raises(DataError) as caught:
        read_split(reason_seg(tmp_path, _json(annotation)), "train")
    assert len(caught.value.findings) == 20_000
    assert str(caught.value).splitlines()[100:] == ["… and 19900 more findings"]


def test_edges_far_outside_of_the_picture_are_refused(tmp_path: Path) -> None:
    """pycocotools walks along them in steps of a fifth of a pixel and keeps every one."""
    path = tmp_path / "instances.json"
    for far, count in ((100.0, 0), (999_999.0, 1)):
        edges = [-far, 0, far, 1] * 100
        notes = COCO | {"annotations": [COCO["annotations"][0] | {"segmentation": [edges]}]}
        path.write_bytes(
            _json(notes | {"images": [COCO["images"][0] | {"height": 99, "width": 999}]})
        )
        report = Report(path)
        read_coco(report)
        assert len(report.findings) == count


# -------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (2, 999)])
def test_clip_looks_at_the_middle_of_a_line(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled up to CLIP's size, a line of 60 000 pixels took 9 GB."""
    asked: list[int] = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest: (
        asked.append(size[0] * size[1]), resize(self, size, *rest))[1])  # fmt: skip
    image = np.zeros((*shape, 3), np.uint8)
    image[tuple(slice(n // 2 - 32, n // 2 + 32) if n > 2 else slice(None) for n in shape)] = 255
    seen = clip_pixels(image, 224)
    assert seen.shape == (3, 224, 224) and seen[:, 112, 112].min() > 1
    assert asked[0] <= LONGEST * 224 * 224 == 64 * 224 * 224


def test_a_line_longer_than_any_picture_is_refused(tmp_path: Path) -> None:
    """Pillow keeps a pointer for every row: 3 GB for a column of 89 million pixels."""
    path = tmp_path / "a.png"
    path.write_bytes(png(1, LONGEST_SIDE + 1))
    with pytest.raises(DataError, match=f"{LONGEST_SIDE} a side"):
        read_image(path)
    path.write_bytes(png(1, LONGEST_SIDE))
    assert read_image(path).shape == (LONGEST_SIDE, 1, 3)


def test_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_a_pipe_is_no_picture_and_no_annotation(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "a")
    report = Report(tmp_path / "a")
    assert load_json(report, dict, "x") is None and "no such file" in str(report.findings[0])


def test_an_annotation_of_gigabytes_is_not_parsed(tmp_path: Path) -> None:
    path = reason_seg(tmp_path) / "ReasonSeg" / "train" / "a.json"
    os.truncate(path, LARGEST_FILE + 1)
    (finding,) = check_data(tmp_path)
    assert "more than 64 MiB" in str(finding)


# ------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", True),
        ("sub/b.png", True),
        ("sub\\b.png", True),
        ("./a.png", True),
        ("sub/../a.png", True),
        ("link.png", True),  # to another picture of the folder
        ("../outside.png", False),
        ("out/outside.png", False),  # a linked folder
        ("out.png", False),  # a linked picture
        ("/etc/passwd", False),
        ("C:\\a.png", False),
        ("\\\\host\\a.png", False),
        ("a.png\0", False),
        ("\ud800", False),
        ("x" * 5000, False),
        ("sub", False),
        ("", False),
        (None, False),
    ],
)
def test_only_pictures_of_the_folder_can_be_named(
    tmp_path: Path, name: object, found: bool
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "a.png", folder / "sub" / "b.png", tmp_path / "outside.png"):
        path.write_bytes(PICTURE)
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    report = Report(tmp_path / "notes.json")
    assert (picture_in(report, "image", name, folder) is not None) == found
    assert len(report.findings) == (not found)
    if isinstance(name, str):
        (tmp_path / "asked").write_text(json.dumps({"image": name, "question": "x"}))
        try:
            assert len(read_questions(folder, None, tmp_path / "asked", False, False)) == found
        except ValueError as error:
            assert not found and "asked: line 1: image" in str(error)


def test_a_labelme_file_may_name_a_picture_beside_its_folder_but_not_outside(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    (root / "json").mkdir(parents=True)
    for path in (root / "a.png", tmp_path / "outside.png"):
        path.write_bytes(PICTURE)
    for name, found in (("../a.png", True), ("../../outside.png", False)):
        report = Report(tmp_path / "notes.json")
        assert (picture_in(report, "x", name, root / "json", root=root) is not None) == found


def test_questions_that_are_no_text_are_told_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    asked = tmp_path / "asked.jsonl"
    asked.write_bytes(b'\x80{"image": "a.png"}')
    with pytest.raises(ValueError, match="asked.jsonl: .*not UTF-8|asked.jsonl: file: got"):
        read_questions(tmp_path, None, asked, False, False)
    row = json.dumps({"image": "a.png", "question": "x\u2028y"}, ensure_ascii=False)
    asked.write_text(row, encoding="utf-8-sig")  # neither is the end of a line
    (one,) = read_questions(tmp_path, None, asked, False, False)
    assert one.text == "x\u2028y"


# ---------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("data", [surfaces.BOMB, surfaces.LAUGHS])
def test_a_pickle_that_grows_is_refused_in_no_time(tmp_path: Path, data: bytes) -> None:
    """A memo of 32 GiB in nine bytes; and lists that are twice the list before, 60 times."""
    path = tmp_path / "refs"
    path.write_bytes(data)
    report = Report(path)
    tracemalloc.start()
    try:
        for value in read_references(report):
            report.add("x", value, "nothing", "none")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(report.findings)) < 10_000 and most < 1 << 30


def test_numbers_of_a_pickle_may_be_longer_than_python_spells(tmp_path: Path) -> None:
    path = tmp_path / "refs"
    path.write_bytes(pickle.dumps(10**5000))
    report = Report(path)
    assert read_references(report) == [] and "bits" in str(report.findings[0])


# ------------------------------------------------------------------------------ tensors and runs


def test_features_without_a_dimension_are_a_bad_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"features": torch.tensor(1.0)}, path, {"key": "k", "crc32": "0"})
    with pytest.raises(BadEntry, match="checksum differs"):
        read_entry(path, "k")
    cache = FeatureCache(tmp_path, "k")
    (tmp_path / "a.png").write_bytes(PICTURE)
    cache.write(tmp_path / "a.png", {"features": torch.tensor(1.0)})
    assert cache.read(tmp_path / "a.png") == {"features": 1}


@pytest.mark.parametrize("text", [DEEP, "[]", "null", '{"a": {"tensor": "none"}}', "{", DIGITS])
def test_a_state_of_nothing_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    (tmp_path / STATE).write_bytes(save({"b": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="its state cannot be read"):
        checkpoint.load_state(tmp_path)


def test_a_pipe_in_a_run_folder_is_as_good_as_damaged(tmp_path: Path) -> None:
    """Opening one waits for a writer, and so did `--resume`, for ever."""
    for name in ("manifest.json", "facts.json", "summary.json", "state.json", STATE):
        os.mkfifo(tmp_path / name)
    (tmp_path / "overlay.png").touch()
    assert not is_complete(tmp_path) and read_facts(tmp_path) == {}
    assert "is a pipe" in damage(tmp_path)
    with pytest.raises(CheckpointError, match="is a pipe"):
        checkpoint.load_state(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps({STATE: "0", TRAINED: "0"}))
    assert "is a pipe" in damage(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a pipe"):
        checkpoint.load_state(tmp_path)


def test_what_is_nested_too_deep_is_as_good_as_damaged(tmp_path: Path) -> None:
    for name in ("manifest.json", "facts.json", "run.json", "conversion.json", "config.json"):
        (tmp_path / name).write_text(DEEP)
    assert "recursion" in damage(tmp_path)
    assert read_facts(tmp_path) == {} == read_object(tmp_path / "config.json")
    with pytest.raises(CannotResume):
        Started.read(tmp_path)
    with pytest.raises(ValueError, match="names no model"):
        find_trained(tmp_path)


def test_a_state_of_another_kind_of_training_is_a_checkpoint_error() -> None:
    for error in (KeyError("step"), TypeError("int"), AttributeError("x"), RuntimeError("size")):
        with (
            pytest.raises(CheckpointError, match="another training's"),
            checkpoint.state_errors(Path("run")),
        ):
            raise error


@pytest.mark.parametrize("items", [[], {"train": 3}, {"train": [[1, 2]]}, "x", None])
def test_a_record_of_no_items_is_no_run(tmp_path: Path, items: object) -> None:
    record = surfaces.RECORD | {"digests": items}
    (tmp_path / "run.json").write_bytes(_json(record))
    with pytest.raises(CannotResume, match="run.json: damaged .*\n.*no run to resume"):
        Started.read(tmp_path)


@pytest.mark.parametrize("key", ["metrics", "before", "data", "versions", "peak_reserved_bytes"])
@pytest.mark.parametrize("value", ["x", [1], {"images": 1, "giou": "x"}, {"images": 2}])
def test_a_card_leaves_out_what_is_not_known(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "facts.json").write_bytes(_json(surfaces.FACTS | {key: value}))
    assert "# LISA-tiny" in card(Plan(), facts_of(tmp_path), merged=False)


@pytest.mark.parametrize("text", ["", "{}", DEEP, '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none_is_a_weights_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(WeightsError, match="tokenizer.json: cannot be read"):
        LisaTokenizer.read(tmp_path, 4)


def test_a_tokenizer_that_panics_is_a_weights_error(tmp_path: Path) -> None:
    """A panic in the library's Rust code is no Exception."""
    document = dict(surfaces.tokenizer_document())
    document["model"] = document["model"] | {"continuing_subword_prefix": "longer than a token"}
    (tmp_path / "tokenizer.json").write_bytes(_json(document))
    with pytest.raises(WeightsError, match="tokenizer.json: cannot be read"):
        LisaTokenizer.read(tmp_path, 4)


def test_embeddings_without_a_row_make_no_model(tmp_path: Path) -> None:
    """Rows that a checkpoint lacks get the mean of its rows, which is not a number for none."""
    tensors = surfaces.published()
    name = "language_model.model.embed_tokens.weight"
    (tmp_path / "model.safetensors").write_bytes(save(tensors | {name: tensors[name][:0]}))
    needed = {here: tensors[there].shape for here, there in surfaces.PUBLISHED.items()}
    with pytest.raises(WeightsError, match="no row at all"):
        choose([Source.read(tmp_path, FAMILY)], needed, "tiny", Conversion("tiny"))


@pytest.mark.parametrize("number", [{}, [], None, True, 1.0, "1"])
def test_a_reference_to_what_is_no_number_is_a_finding(tmp_path: Path, number: object) -> None:
    first = surfaces.REFERENCES[0] | {"ann_id": number}
    assert not surfaces.feed_refer(pickle.dumps([first, *surfaces.REFERENCES[1:]]), tmp_path)
