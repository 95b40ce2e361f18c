"""The ReasonSeg reader: what it accepts, what it paints, and that it names all that is broken."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.reasonseg import (
    DataError,
    Finding,
    Polygon,
    check_data,
    paint_mask,
    read_image,
    read_split,
    summarise,
)

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
        assert str(finding.path) in str(raised.value)
        assert "got " in finding.reason and "allowed: " in finding.reason and finding.fix
        assert finding.reason in str(raised.value) and finding.fix in str(raised.value)
    return [finding.reason for finding in findings]


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
    summary = summarise(tmp_path)
    assert list(summary) == ["train", "test"]
    assert summary["train"] == {
        "items": 2,
        "texts": 3,
        "sentences": 1,
        "explanations": 0,
        "empty_masks": 1,
        "smallest_image": (20, 10),
        "largest_image": (30, 40),
    }
    assert summary["test"]["empty_masks"] == 1


# -------------------------------------------------------------------------------- what is broken


def test_no_root_no_splits_unknown_split(tmp_path: Path) -> None:
    assert "no such folder" in reasons(tmp_path / "none")[0]
    assert "none of them" in reasons(tmp_path)[0]
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
    assert [finding.path.name for finding in found] == ["lone", "pictureless", "twice"]
    assert "one .json" in found[0].reason and "one .jpg or" in found[1].reason
    assert "twice.jpg, twice.png" in found[2].reason
    assert len(reasons(tmp_path)) == 3


BROKEN = {
    "[": "JSONDecodeError",
    "[1]": "content [1]",
    "null": "content None",
    "[" * 100_000: "RecursionError",
    "1" * 5000: "ValueError",
    "": "JSONDecodeError",
}


@pytest.mark.parametrize(("text", "got"), BROKEN.items(), ids=range(len(BROKEN)))
def test_broken_json(tmp_path: Path, text: str, got: str) -> None:
    (add(tmp_path) / "a.json").write_text(text)
    (reason,) = reasons(tmp_path)
    assert got in reason


def test_neither_utf8_nor_cp1252(tmp_path: Path) -> None:
    (add(tmp_path) / "a.json").write_bytes(b'{"text": "\x81"}')
    assert "UnicodeDecodeError" in reasons(tmp_path)[0]


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
    assert finding.path == folder / "a.jpg" and "truncated" in finding.reason
    (item,) = read_split(tmp_path, "train")  # reads the header only, as documented
    with pytest.raises(DataError, match="truncated"):
        read_image(item.image_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [199, 90])  # Pillow warns up to twice, then raises
def test_image_bombs(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (found,) = reasons(tmp_path)
    assert "DecompressionBombError" in found and f"at most {limit} pixels" in found
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
    assert {finding.path for finding in check_data(tmp_path)} == {path}


def test_data_error_travels_between_processes() -> None:
    error = DataError([Finding(Path("a"), "b", "c")])
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


@given(st.integers(0, 100_000), st.integers(0, 255), st.sampled_from([".jpg", ".png"]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_pictures_never_raise_anything_else(
    tmp_path: Path, place: int, value: int, suffix: str
) -> None:
    ramp = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    Image.fromarray(ramp).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        pixels = read_image(path)
    except DataError as error:
        assert error.findings[0].path == path
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


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
    other = cv2.imread(str(path))[:, :, ::-1]
    assert np.abs(upright.astype(int) - other).max() < 30
    # the annotation refers to the upright picture, for the headers-only reading as well
    low = annotation(**shape(points=[[1, 20], [9, 20], [9, 28]]))
    (folder / "a.json").write_text(json.dumps(low))
    assert (len(check_data(tmp_path)) == 0) == (orientation > 4)
    if orientation > 4:
        assert len(read_split(tmp_path, "train")) == 1
    else:
        assert "wholly outside" in reasons(tmp_path)[0]


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "rgb"),
    [
        ("L", 90, "jpg", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 0), "png", (90, 90, 90)),
        ("RGBA", (10, 200, 30, 0), "png", (10, 200, 30)),
        ("I;16", 0x8040, "png", (128, 128, 128)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, suffix: str, rgb: object) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (8, 4), colour).save(path)  # type: ignore[arg-type]
    pixels = read_image(path)
    assert pixels.shape == (4, 8, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
@pytest.mark.filterwarnings("error")
def test_palettes(tmp_path: Path, transparency: object) -> None:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([1, 2, 3, 40, 50, 60])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)  # type: ignore[arg-type]
    assert (read_image(tmp_path / "a.png") == (40, 50, 60)).all()


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    deep = np.full((4, 8, 3), 0x8040, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    assert (read_image(tmp_path / "a.png") == 128).all()


# --------------------------------------------------------------------------------------- masks


def outline_distance(points: np.ndarray, x: float, y: float) -> float:
    """Distance in pixels of a point from a closed outline [N, 2]."""
    nearest = np.inf
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        along = end - start
        length = float(along @ along)
        share = 0.0 if length == 0 else float(np.clip((([x, y] - start) @ along) / length, 0, 1))
        nearest = min(nearest, float(np.hypot(*(start + share * along - [x, y]))))
    return nearest


def is_inside(points: np.ndarray, x: float, y: float) -> bool:
    """Even-odd rule: crossings of a ray to the right."""
    inside = False
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


COORDINATE = st.floats(-15, 40)


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7))
@settings(max_examples=60, deadline=None)
def test_fill_agrees_with_the_even_odd_rule(points: list[tuple[float, float]]) -> None:
    height, width = 18, 24
    drawn = np.trunc(np.array(points))
    mask = paint_mask([Polygon("target", np.array(points))], height, width)
    assert mask.shape == (height, width) and mask.dtype == np.uint8
    for y in range(height):
        for x in range(width):
            distance = outline_distance(drawn, x, y)
            if distance > 1.0:
                assert mask[y, x] == is_inside(drawn, x, y)
            elif distance < 0.01:
                assert mask[y, x] == 1


def square(label: str, left: int, top: int, side: int) -> Polygon:
    right, bottom = left + side, top + side
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return Polygon(label, np.array(corners, dtype=np.float64))


@pytest.mark.parametrize("flip", [1, -1])
def test_small_polygons_lie_on_large_ones(flip: int) -> None:
    layers = [square("target", 0, 0, 20), square("Ignore this", 4, 4, 10), square("cup", 6, 6, 4)]
    mask = paint_mask(layers[::flip], 24, 24)
    assert mask[2, 2] == 1 and mask[5, 5] == 255 and mask[8, 8] == 1 and mask[23, 23] == 0
    assert (mask == 255).sum() == 11 * 11 - 5 * 5
    assert (mask == 1).sum() == 21 * 21 - 11 * 11 + 5 * 5


def test_area_is_what_lies_inside_the_picture() -> None:
    # larger on paper, but only 4 x 4 pixels of it are in the picture
    corner = square("ignore", -50, -50, 53)
    mask = paint_mask([corner, square("target", 0, 0, 9)], 20, 20)
    assert (mask[:4, :4] == 255).all() and mask[5, 5] == 1


def test_of_equal_areas_the_first_in_the_file_is_on_top() -> None:
    one, two = square("target", 0, 0, 5), square("ignore", 3, 0, 5)
    assert paint_mask([one, two], 10, 10)[2, 4] == 1
    assert paint_mask([two, one], 10, 10)[2, 4] == 255


def test_outline_truncation_and_empty() -> None:
    mask = paint_mask([square("target", 2, 3, 4)], 10, 12)
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[3:8, 2:7] = 1
    np.testing.assert_array_equal(mask, expected)
    fractional = Polygon("target", square("target", 2, 3, 4).points + 0.9)
    np.testing.assert_array_equal(paint_mask([fractional], 10, 12), expected)
    assert not paint_mask([], 10, 12).any()


def test_the_largest_coordinates_allowed() -> None:
    huge = np.array([[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]])
    assert (paint_mask([Polygon("target", huge)], 40, 30) == 1).all()
