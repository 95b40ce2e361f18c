"""Pictures in the mask decoder's frame."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.frame import MEAN, STD, Frame, normalised


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_rows_are_normalised_as_pixels_are(kind: type) -> None:
    """To the bit: features that were cached stay valid."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(kind)
    assert np.array_equal(normalised(image, MEAN, STD), (image.astype(np.float32) - MEAN) / STD)


def test_a_narrow_picture_is_padded_with_zeros() -> None:
    image = np.full((8, 4, 3), 200, np.uint8)
    framed = Frame(16).pixels(image)
    assert framed.shape == (3, 16, 16) and framed.dtype == np.float32
    assert (framed[:, :, :8] > 0).all() and (framed[:, :, 8:] == 0).all()
