"""Masks are seen on any ground, and captions show what is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.overlays import (
    COLOURS,
    LINES,
    TILE,
    TITLE,
    Row,
    Tile,
    captioned,
    overlay,
    write_sheet,
)

GROUNDS = [*COLOURS, (0, 0, 0), (255, 255, 255), (128, 128, 128)]


def square(size: int = 60, start: int = 20, end: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:end, start:end] = True
    return mask


@pytest.mark.parametrize("ground", GROUNDS)
def test_an_edge_is_seen_on_a_ground_of_any_colour(ground: tuple[int, int, int]) -> None:
    """All over the picture, also where it has the mask's own colour."""
    picture = np.full((60, 60, 3), ground, np.uint8)
    for number, colour in enumerate(COLOURS):
        shown = overlay(picture, [square()], COLOURS[number:]).astype(int)
        light, dark = shown[30, 20], shown[30, 19]
        assert abs(light - dark).max() > 180, (ground, colour)
        inside, outside = shown[30, 30], shown[5, 5]
        assert not sum(ground) or inside.sum() > 1.3 * outside.sum(), (ground, colour)
    assert (overlay(picture, [])[0, 0] < np.maximum(1, ground)).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_is_seen_on_white(colour: tuple[int, int, int]) -> None:
    """By its lightness: yellow differs from white in blue alone, which the eye hardly sees."""
    white = np.full((60, 60, 3), 255, np.uint8)
    inside = overlay(white, [square()], [colour])[30, 30]
    assert inside @ [0.299, 0.587, 0.114] < 230


def test_a_mask_at_the_picture_s_edge_and_one_of_a_pixel_have_their_lines() -> None:
    picture = np.full((60, 60, 3), 128, np.uint8)
    whole = overlay(picture, [np.ones((60, 60), bool)])
    assert (whole[0, 30] > whole[30, 30]).any() and (whole[30, 59] > whole[30, 30]).any()
    dot = overlay(picture, [square(60, 30, 31)])
    assert dot[30, 30].max() == 255 and not dot[29:32, 29].any()


def test_later_masks_lie_over_earlier_ones_in_colours_of_their_own() -> None:
    picture = np.full((60, 60, 3), 128, np.uint8)
    first, second = square(60, 5, 30), square(60, 20, 55)
    shown = overlay(picture, [first, second])
    assert (shown[10, 10] != shown[45, 45]).any()
    assert (overlay(picture, [first] * 6)[15, 15] != overlay(picture, [first] * 5)[15, 15]).any()


@pytest.mark.parametrize(
    "text", ["Where?", "", "Где стоит чашка? " * 40, "x" * 3000, "a\n\ud800\u202eb"]
)
@pytest.mark.parametrize("size", [(9, 7), (40, 1), (300, 400)])
def test_a_caption_leaves_the_picture_as_it_is(text: str, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    page = captioned(picture, text)
    assert np.array_equal(page[-size[0] :], picture)
    caption = page[: -size[0]]
    assert caption.shape[0] <= LINES * 20 and page.shape[1] == size[1]
    assert size[1] < 40 or (caption.min() < 128) == bool(text)


def test_a_sheet_draws_lines_at_its_own_size(tmp_path: Path) -> None:
    """A line drawn before the picture shrinks would be gone."""
    picture, mask = np.full((2048, 2048, 3), 128, np.uint8), square(2048, 512, 1536)
    dot = np.zeros((2048, 2048), bool)
    dot[1700, 300] = True
    tiles = (Tile("as it is", picture), Tile("masked", picture, (mask, dot)))
    sheet = np.asarray(Image.open(write_sheet([Row("a title", tiles)], tmp_path / "sheet.png")))
    assert sheet.shape == (TILE + TITLE, 2 * TILE, 3)
    assert (sheet[TITLE + 150, 100] == 128).all()
    light, dark = sheet[TITLE + 128, TILE + 64], sheet[TITLE + 128, TILE + 63]
    assert light.max() == 255 and not dark.any()
    assert sheet[TITLE + 212, TILE + 37].max() == 255


def test_a_tile_without_a_caption_has_none(tmp_path: Path) -> None:
    black = np.zeros((TILE, TILE, 3), np.uint8)
    path = write_sheet([Row("title", (Tile("", black), Tile("one", black)))], tmp_path / "a.png")
    with Image.open(path) as sheet:
        left, right = np.split(np.asarray(sheet)[TITLE:, : 2 * TILE], 2, axis=1)
    assert left.max() == 0 and right.max() > 200
