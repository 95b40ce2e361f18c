"""The photographs in tests/photos, picture modes, and masks against an independent painter."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import ROOT as REPO
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import Item, check, check_data, read_split
from trainer.data.images import read_image
from trainer.data.polygons import Polygon, paint_mask

ROOT = REPO / "tests" / "photos"

# Upright (height, width), and the share of target pixels, looked at on overlays: a tenth to
# either side of what the hand-drawn outlines cover.
PHOTOS = {
    ("train", "astronaut"): ((320, 320), 0.111, 0.136),
    ("train", "cat"): ((213, 320), 0.039, 0.048),
    ("train", "clock"): ((240, 320), 0.105, 0.128),
    ("train", "coffee"): ((213, 320), 0.188, 0.230),
    ("train", "photographer"): ((320, 320), 0.277, 0.338),
    ("train", "retina"): ((320, 320), 0.0141, 0.0173),
    ("train", "rocket"): ((214, 320), 0.0220, 0.0268),
    ("val", "astronaut_patch"): ((320, 320), 0.0149, 0.0183),
    ("val", "cat_nose"): ((213, 320), 0.0086, 0.0106),
    ("val", "coffee_handle"): ((213, 320), 0.0106, 0.0130),
}


def photo(split: str, name: str) -> Item:
    (item,) = [item for item in read_split(ROOT, split) if item.name == name]
    return item


def test_all_photographs_are_sound() -> None:
    assert check_data(ROOT) == []
    found = [(split, item.name) for split in ("train", "val") for item in read_split(ROOT, split)]
    assert found == list(PHOTOS)
    counts, _ = check(ROOT)
    assert [counts["train"][key] for key in ("items", "sentences", "explanations")] == [7, 4, 1]
    assert [counts["val"][key] for key in ("items", "texts", "sentences")] == [3, 3, 2]
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    assert size < 400_000


@pytest.mark.parametrize(("place", "expected"), PHOTOS.items(), ids=[name for _, name in PHOTOS])
def test_size_and_area(
    place: tuple[str, str], expected: tuple[tuple[int, int], float, float]
) -> None:
    item, ((height, width), least, most) = photo(*place), expected
    assert read_image(item.image_path).shape == (height, width, 3)
    mask = paint_mask(item.polygons, height, width)
    assert least <= float((mask == 1).mean()) <= most
    assert bool((mask == 255).any()) == (item.name == "coffee")
    assert len(item.texts) == (1 if place[0] == "val" else len(set(item.texts)))


def test_what_is_special_about_some() -> None:
    coffee = photo("train", "coffee")
    with pytest.raises(UnicodeDecodeError):
        coffee.json_path.read_text(encoding="utf-8")
    assert coffee.texts[0] == "cup of café"
    assert [polygon.label for polygon in coffee.polygons] == ["target", "ignore", "ignore_tip"]
    for name in ("clock", "photographer"):
        assert Image.open(photo("train", name).image_path).mode == "L"
    cat = photo("train", "cat")
    assert '"flag"' in cat.json_path.read_text(encoding="utf-8")
    assert [polygon.label for polygon in cat.polygons] == ["target", "target"]
    (explanation,) = photo("train", "astronaut").explanations
    assert explanation.query.endswith("Please explain why.") and "helmet" in explanation.answer


def test_the_rocket_stands_upright() -> None:
    rocket = photo("train", "rocket")
    stored = Image.open(rocket.image_path)
    assert stored.size == (214, 320) and stored.getexif()[0x0112] == 6
    pixels = read_image(rocket.image_path).astype(int)
    assert pixels[100, 160].min() > 100 > pixels[100, 140].min()  # white rocket, dusky sky
    assert pixels[210, 150, 0] > pixels[210, 150, 2] + 40  # yellow launch pad below it
    ys, xs = np.nonzero(paint_mask(rocket.polygons, *pixels.shape[:2]))
    assert np.ptp(ys) > 8 * np.ptp(xs)


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
        assert error.findings[0].where == str(path)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


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


# Within the picture: at its edge OpenCV clips slanted outlines with a rounding of its own.
CORNER = st.tuples(st.floats(0, 23.9), st.floats(0, 17.9))


@given(st.lists(CORNER, min_size=3, max_size=7))
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
