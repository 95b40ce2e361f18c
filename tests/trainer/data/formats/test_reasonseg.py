"""The ReasonSeg reader: what it accepts, what it paints, and that it names all that is broken."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.findings import DataError, Finding
from trainer.data.formats.reasonseg import check, check_data, read_split
from trainer.data.images import read_image

SQUARE = [[2, 2], [9, 2], [9, 7], [2, 7]]


def annotation(**changes: object) -> dict[str, object]:
    shape = {"label": "target", "points": SQUARE}
    return {"shapes": [shape], "text": ["the cup"], "is_sentence": False} | changes


def add(root: Path, name: str = "a", split: str = "train", note: object = None) -> Path:
    """One sound item of 20 x 10 pixels, or one with another annotation."""
    folder = root / "ReasonSeg" / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (200, 100, 50)).save(folder / f"{name}.jpg")
    text = json.dumps(annotation() if note is None else note)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def reasons(root: Path, split: str = "train") -> list[str]:
    """The findings of check_data; those of read_split have to be the same."""
    findings = check_data(root)
    with pytest.raises(DataError) as raised:
        read_split(root, split)
    assert list(raised.value.findings) == findings
    for finding in findings:
        assert finding.where in str(raised.value)
        assert re.search("got |cannot be read: ", finding.what) and finding.fix
        assert "allowed: " in finding.what and "Error" not in finding.what
        said = finding.what.removeprefix(finding.place)
        assert said in str(raised.value) and finding.fix in str(raised.value)
    return [finding.what for finding in findings]


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("tail", ["", "ReasonSeg"])
def test_every_layout_of_the_root(tmp_path: Path, tail: str) -> None:
    add(tmp_path / "x" / "reason_seg")
    for root in (tmp_path / "x", tmp_path / "x" / "reason_seg" / tail):
        assert [item.name for item in read_split(root, "train")] == ["a"]


def test_an_unrelated_train_folder_does_not_hide_the_data(tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / "train").mkdir()
    assert len(read_split(tmp_path, "train")) == 1


def test_item(tmp_path: Path) -> None:
    folder = add(tmp_path, note=annotation(text=[" one ", "two"], is_sentence=True))
    (item,) = read_split(tmp_path, "train")
    assert (item.name, item.texts, item.is_sentence) == ("a", ("one", "two"), True)
    assert (item.image_path, item.json_path) == (folder / "a.jpg", folder / "a.json")
    assert item.polygons[0].label == "target"
    assert item.polygons[0].points.dtype == np.float64
    np.testing.assert_array_equal(item.polygons[0].points, SQUARE)
    assert item.explanations == ()


def test_one_string_is_one_text(tmp_path: Path) -> None:
    add(tmp_path, note=annotation(text="the cup"))
    assert read_split(tmp_path, "train")[0].texts == ("the cup",)


def test_sorted_and_limited(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        folder = add(tmp_path, name)
    (folder / "c.json").write_text("broken")
    (folder / ".DS_Store").write_text("")
    (folder / "._a.jpg").write_text("")
    (folder / "notes.txt").write_text("")
    assert [item.name for item in read_split(tmp_path, "train", limit=2)] == ["a", "b"]
    with pytest.raises(DataError, match="c.json"):
        read_split(tmp_path, "train")
    with pytest.raises(DataError, match="limit: got 0"):
        read_split(tmp_path, "train", limit=0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    folder = add(tmp_path)
    text = json.dumps(annotation(text=["café – “crème”"]), ensure_ascii=False)
    (folder / "a.json").write_bytes(text.encode(encoding))
    assert read_split(tmp_path, "train")[0].texts == ("café – “crème”",)


def test_flags_are_dropped_whatever_their_points(tmp_path: Path) -> None:
    shapes = [{"label": "Flag", "points": [[500, 500]]}, {"label": "flag"}]
    add(tmp_path, note=annotation(shapes=shapes))
    assert read_split(tmp_path, "train")[0].polygons == ()
    assert check_data(tmp_path) == []


def test_explanations(tmp_path: Path) -> None:
    folder = add(tmp_path)
    add(tmp_path, "b")
    add(tmp_path, "a", "val")
    (folder.parent / "explanatory").mkdir()
    entry = {"image": "a.jpg", "query": "Why?", "outputs": "Because."}
    (folder.parent / "explanatory" / "train.json").write_text(json.dumps([entry]))
    first, second = read_split(tmp_path, "train")
    assert [(e.query, e.answer) for e in first.explanations] == [("Why?", "Because.")]
    assert second.explanations == read_split(tmp_path, "val")[0].explanations == ()
    # with a limit the pictures left out are no missing ones
    entry["image"] = "b.jpg"
    (folder.parent / "explanatory" / "train.json").write_text(json.dumps([entry]))
    assert len(read_split(tmp_path, "train", limit=1)) == 1


def test_summary(tmp_path: Path) -> None:
    add(tmp_path, note=annotation(text=["one", "two"], is_sentence=True))
    ignored = [{"label": "ignore", "points": SQUARE}]
    folder = add(tmp_path, "b", note=annotation(shapes=ignored))
    Image.new("L", (30, 40)).save(folder / "b.jpg")
    add(tmp_path, "c", "test", annotation(shapes=[]))
    summary, findings = check(tmp_path)
    assert not findings
    assert list(summary) == ["train", "test"]
    assert summary["train"] == {
        "items": 2,
        "pictures": 2,
        "texts": 3,
        "sentences": 1,
        "explanations": 0,
        "empty_masks": 1,
        "smallest_image": (20, 10),
        "largest_image": (30, 40),
    }
    assert summary["test"]["empty_masks"] == summary["test"]["in_train"] == 1, "a is c's picture"


# -------------------------------------------------------------------------------- what is broken


def test_no_root_no_splits_unknown_split(tmp_path: Path) -> None:
    assert "no such folder" in reasons(tmp_path / "none")[0]
    assert "a folder without a split" in reasons(tmp_path)[0]
    (tmp_path / "refer_seg").mkdir()
    with pytest.raises(DataError, match="refer_seg is trained on, not scored: put ReasonSeg"):
        read_split(tmp_path, "train")
    add(tmp_path)
    for split in ("val", "training", "../train", ""):
        with pytest.raises(DataError, match="split: got .*allowed: train"):
            read_split(tmp_path, split)
    (tmp_path / "ReasonSeg" / "val").mkdir()
    assert "pictures, each with" in reasons(tmp_path, "val")[0]


def test_pairs(tmp_path: Path) -> None:
    folder = add(tmp_path, "lone")
    (folder / "lone.json").unlink()
    add(tmp_path, "pictureless")
    (folder / "pictureless.jpg").unlink()
    add(tmp_path, "twice")
    Image.new("L", (5, 5)).save(folder / "twice.png")
    found = check_data(tmp_path)
    assert [Path(finding.where).name for finding in found] == ["lone", "pictureless", "twice"]
    assert "one .json" in found[0].what and "one .jpg or" in found[1].what
    assert "twice.jpg, twice.png" in found[2].what
    assert len(reasons(tmp_path)) == 3


@pytest.mark.parametrize("name", ["a.webp", "a.bmp", "a.tif", "a.JFIF"])
def test_a_picture_of_another_kind_is_its_items(tmp_path: Path, name: str) -> None:
    folder = add(tmp_path)
    kind = "JPEG" if name.endswith("JFIF") else None
    Image.open(folder / "a.jpg").save(folder / name, kind)
    assert read_split(tmp_path, "train")[0].image_path.name == "a.jpg"  # that comes first
    (folder / "a.jpg").unlink()
    (item,) = read_split(tmp_path, "train")
    assert item.image_path.name == name and check_data(tmp_path) == []
    (folder / "alone.webp").write_bytes((folder / name).read_bytes())  # asked about nowhere
    assert check_data(tmp_path) == []


def test_a_kind_that_is_not_read_is_named(tmp_path: Path) -> None:
    folder = add(tmp_path)
    (folder / "a.jpg").rename(folder / "a.heic")
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (finding,) = check_data(tmp_path)
    assert Path(finding.where).name == "a.heic" and "JPEG, PNG, WEBP" in finding.what


BROKEN = {
    "[": "cannot be read: Expecting value: line 1 column 2",
    "[1]": "got [1]",
    "null": "got nothing",
    "[" * 100_000: "cannot be read: nested too deeply",
    "1" * 5000: "cannot be read: Exceeds the limit (4300 digits)",
    "": "cannot be read: it is empty",
}


@pytest.mark.parametrize(("text", "got"), BROKEN.items(), ids=range(len(BROKEN)))
def test_broken_json(tmp_path: Path, text: str, got: str) -> None:
    (add(tmp_path) / "a.json").write_text(text)
    (reason,) = reasons(tmp_path)
    assert got in reason


def test_neither_utf8_nor_cp1252(tmp_path: Path) -> None:
    (add(tmp_path) / "a.json").write_bytes(b'{"text": "\x81"}')
    assert "cannot be read: not text in UTF-8 (byte 10 is 0x81)" in reasons(tmp_path)[0]


def shape(**changes: object) -> dict[str, object]:
    return {"shapes": [{"label": "target", "points": SQUARE} | changes]}


WRONG: list[tuple[dict[str, object], str]] = [
    ({"text": []}, "text: got []"),
    ({"text": ""}, "text[0]: got ''"),
    ({"text": 3}, "text: got 3"),
    ({"text": None}, "text: got nothing"),
    ({"text": ["good", " \n"]}, "text[1]: got ' \\n'"),
    ({"text": ["good", 5]}, "text[1]: got 5"),
    ({"text": ["half \ud800"]}, "text[0]: got 'half \\ud800'"),
    ({"is_sentence": 1}, "is_sentence: got 1"),
    ({"is_sentence": None}, "is_sentence: got nothing"),
    ({"shapes": {}}, "shapes: got {}"),
    ({"shapes": None}, "shapes: got nothing"),
    ({"shapes": [{"label": "target"}]}, "shapes[0].points: got nothing"),
    ({"shapes": [{"points": SQUARE}]}, "shapes[0].label: got nothing"),
    (shape(label=7), "shapes[0].label: got 7"),
    (shape(points="x"), "shapes[0].points: got 'x'"),
    (shape(points=SQUARE[:2]), "shapes[0].points: got [[2, 2], [9, 2]]"),
    (shape(points=[[2, 2], [9, 2], [9]]), "shapes[0].points[2]: got [9]"),
    (shape(points=[[2, 2], [9, 2], [9, 7, 1]]), "shapes[0].points[2]: got [9, 7, 1]"),
    (shape(points=[[2, 2], [9, 2], ["9", 7]]), "shapes[0].points[2]: got ['9', 7]"),
    (shape(points=[[2, 2], [9, 2], [True, 7]]), "shapes[0].points[2]: got [True, 7]"),
    (shape(points=[[2, 2], [9, 2], [float("nan"), 7]]), "shapes[0].points[2]: got [nan, 7]"),
    (shape(points=[[2, 2], [9, 2], [-float("inf"), 7]]), "shapes[0].points[2]: got [-inf, 7]"),
    (shape(points=[[2, 2], [9, 2], [10**400, 7]]), "shapes[0].points[2]: got [1000"),
    (shape(points=[[2, 2], [9, 2], [2**31, 7]]), "shapes[0].points[2]: got [2147483648"),
    (shape(points=[[30, 2], [49, 2], [49, 7]]), "shapes[0].points: got 'x 30 to 49, y 2 to 7"),
    (shape(points=[[3, -9], [5, -9], [5, -1]]), "wholly outside"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_wrong_values(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    add(tmp_path, note=annotation(**changes))
    (found,) = reasons(tmp_path)
    assert reason in found


@pytest.mark.parametrize("key", ["shapes", "text", "is_sentence"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    note = annotation()
    del note[key]
    add(tmp_path, note=note)
    (found,) = reasons(tmp_path)
    assert found.startswith(f"{key}: got nothing")


def test_all_findings_of_all_items_at_once(tmp_path: Path) -> None:
    bad = {"shapes": [3, {"label": "target", "points": []}], "text": ["", 1]}
    folder = add(tmp_path, "a", note=bad)
    (folder / "a.jpg").write_bytes(b"no picture")
    add(tmp_path, "b")
    add(tmp_path, "c", note=[])
    (folder / "c.jpg").write_bytes(b"")
    kinds = [reason.split(":")[0] for reason in reasons(tmp_path)]
    first = ["text[0]", "text[1]", "is_sentence", "shapes[0].label", "shapes[0].points"]
    assert kinds == ["image", *first, "shapes[1].points", "image", "file"]


def test_truncated_pictures(tmp_path: Path) -> None:
    folder = add(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (finding,) = check_data(tmp_path)
    assert Path(finding.where) == folder / "a.jpg" and "truncated" in finding.what
    (item,) = read_split(tmp_path, "train")  # reads the header only, as documented
    with pytest.raises(DataError, match="truncated"):
        read_image(item.image_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [199, 90])  # Pillow warns up to twice, then raises
def test_image_bombs(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (found,) = reasons(tmp_path)
    assert "cannot be read: " in found and f"at most {limit} pixels" in found
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert check_data(tmp_path) == []


@pytest.mark.parametrize(
    ("entries", "kinds"),
    [
        ("{", ["file"]),
        ({}, ["file"]),
        ([3], ["[0].image", "[0].query", "[0].outputs"]),
        ([{"image": "../train/a.jpg", "query": "q", "outputs": "o"}], ["[0].image"]),
        ([{"image": "/etc/passwd", "query": "q", "outputs": "o"}], ["[0].image"]),
        ([{"image": "other.jpg", "query": "q", "outputs": "o"}], ["[0].image"]),
        ([{"image": "a.jpg", "query": " ", "outputs": 1}], ["[0].query", "[0].outputs"]),
    ],
)
def test_broken_explanations(tmp_path: Path, entries: object, kinds: list[str]) -> None:
    path = add(tmp_path).parent / "explanatory" / "train.json"
    path.parent.mkdir()
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    assert [reason.split(":")[0] for reason in reasons(tmp_path)] == kinds
    assert {finding.where for finding in check_data(tmp_path)} == {str(path)}


def test_data_error_travels_between_processes() -> None:
    error = DataError([Finding("a", "b", fix="c")])
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a: b. Fix: c."
    with pytest.raises(TypeError):
        DataError("a message")  # type: ignore[arg-type]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["label", "points", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["shapes", "text", "is_sentence"]), ANYTHING))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_an_item_or_a_data_error(tmp_path: Path, note: dict[str, object]) -> None:
    shutil.rmtree(tmp_path / "ReasonSeg", ignore_errors=True)
    add(tmp_path, note=note)
    findings = check_data(tmp_path)
    if findings:
        reasons(tmp_path)
    else:
        (item,) = read_split(tmp_path, "train")
        assert item.texts and all(text.strip() for text in item.texts)


# ------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    ramp = np.zeros((16, 32, 3), dtype=np.uint8)
    ramp[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = add(tmp_path)
    (folder / "a.jpg").unlink()
    path = folder / f"a.{suffix}"
    Image.fromarray(ramp).save(path, exif=exif, quality=95)
    upright = read_image(path)
    assert upright.shape == ((32, 16, 3) if orientation > 4 else (16, 32, 3))
    # an independent reader, and the one that upstream draws its masks with
    other = np.asarray(cv2.imread(str(path)))[:, :, ::-1]
    assert np.abs(upright.astype(int) - other).max() < 30
    # the annotation refers to the upright picture, for the headers-only reading as well
    low = annotation(**shape(points=[[1, 20], [9, 20], [9, 28]]))
    (folder / "a.json").write_text(json.dumps(low))
    assert (len(check_data(tmp_path)) == 0) == (orientation > 4)
    if orientation > 4:
        assert len(read_split(tmp_path, "train")) == 1
    else:
        assert "wholly outside" in reasons(tmp_path)[0]
