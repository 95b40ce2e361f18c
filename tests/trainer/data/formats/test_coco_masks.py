"""COCO's masks as boxes of runs, compared with pycocotools' own decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from trainer.data.findings import Report
from trainer.data.formats.coco_masks import painted, painted_boxes, read_parts

SIZE = HEIGHT, WIDTH = 20, 30


def mask_of(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A rectangle with holes, at a border of the picture for some seeds; nothing for one."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    top, left = rng.integers(0, (HEIGHT, WIDTH))
    mask[top : top + seed, left : left + rng.integers(1, 20)] = 1
    return mask * (rng.random(SIZE) < 0.9).astype(np.uint8)


@pytest.mark.parametrize("seed", range(25))
def test_a_box_holds_what_pycocotools_decodes(seed: int) -> None:
    mask = mask_of(seed)
    packed = coco.encode(np.asfortranarray(mask))
    text = {"size": list(SIZE), "counts": packed["counts"].decode()}
    (box,) = painted_boxes([[text]], SIZE)
    whole = np.zeros(SIZE, np.uint8)
    whole[box.rows, box.columns] = box.covered()
    assert np.array_equal(whole, mask) and box.area == mask.sum()
    where = np.argwhere(mask)
    if len(where):
        assert box.covered().shape == tuple(np.ptp(where, axis=0) + 1)


def test_runs_of_no_length_cover_nothing() -> None:
    counts = [0, 0, 45, 3, 0, 2, 1, 0, 6, 4, HEIGHT * WIDTH - 61, 0]
    given = {"size": list(SIZE), "counts": counts}
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    mask = flat.reshape(WIDTH, HEIGHT).T
    parts = read_parts(Report(Path("notes")), "segmentation", [given], SIZE)
    assert parts is not None
    corner = np.array([0.0, 0, 2, 0, 2, 2, 0, 2])
    assert np.array_equal(painted(parts, *SIZE), mask)
    both = painted([*parts, corner], *SIZE)  # joined, which ends at two runs of no length
    assert np.array_equal(both, mask | painted([corner], *SIZE))
    (box,) = painted_boxes([parts], SIZE)
    assert np.array_equal(box.covered(), mask[box.rows, box.columns])
