"""gIoU and cIoU against plain loops, and the accumulator's merging and serialisation."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.conftest import ROOT
from trainer.run.metrics import MaskScores, intersection_union
from trainer.run.validation import describe

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]


def make_pairs(seed: int, count: int = 12) -> list[Pair]:
    """Random (pred, target) of various sizes; the first four are the special cases."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 14, size=2))
        pred = rng.random(shape) < rng.random()
        pairs.append((pred, rng.choice(np.array([0, 1, 255], dtype=np.uint8), size=shape)))
    pairs[0][1][:] = 255  # nothing scored
    pairs[1][0][:], pairs[1][1][:] = False, 0  # nothing there, nothing predicted
    pairs[2][0][:], pairs[2][1][:] = True, 0  # a false alarm
    pairs[3][0][:], pairs[3][1][:] = False, 1  # a miss
    return pairs


def plain_counts(pred: Array, target: Array) -> tuple[int, int]:
    both = either = 0
    for p, t in zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True):
        if t != 255:
            both += int(p and t == 1)
            either += int(p or t == 1)
    return both, either


def plain_scores(pairs: list[Pair]) -> tuple[float, float]:
    counts = [plain_counts(*pair) for pair in pairs]
    ious = [1.0 if u == 0 else i / (u + 1e-5) for i, u in counts]
    ciou = sum(i for i, _ in counts) / (sum(u for _, u in counts) + 1e-10)
    return sum(ious) / len(ious), ciou


def scored(pairs: list[Pair], start: int = 0) -> MaskScores:
    scores = MaskScores()
    for index, (pred, target) in enumerate(pairs, start):
        scores.add(f"image{index}", pred, target)
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_scores_match_plain_loops(seed: int) -> None:
    pairs = make_pairs(seed)
    for pred, target in pairs:
        expected = plain_counts(pred, target)
        assert intersection_union(pred, target) == expected
        as_torch = intersection_union(torch.from_numpy(pred), torch.from_numpy(target))
        assert as_torch == expected
        assert all(type(value) is int for value in as_torch)
    scores = scored(pairs)
    giou, ciou = plain_scores(pairs)
    assert scores.count == len(pairs)
    assert scores.giou == pytest.approx(giou, rel=1e-12)
    assert scores.ciou == pytest.approx(ciou, rel=1e-12)


def test_counts_do_not_overflow_the_mask_type() -> None:
    pred, target = np.ones((70, 70), dtype=bool), np.ones((70, 70), dtype=np.uint8)
    assert intersection_union(pred, target) == (4900, 4900)
    assert intersection_union(torch.from_numpy(pred), torch.from_numpy(target)) == (4900, 4900)


def test_special_images() -> None:
    ignored, nothing, alarm, miss = make_pairs(0)[:4]
    for pair, expected in ((ignored, 1.0), (nothing, 1.0), (alarm, 0.0), (miss, 0.0)):
        assert scored([pair]).giou == expected
    assert scored([nothing]).ciou == 0.0  # by the formula: 0 / 1e-10


def test_known_values() -> None:
    scores = MaskScores()
    scores.add_counts("a", 1, 2)
    scores.add_counts("b", 30, 40)
    scores.add_counts("c", 0, 0)
    assert scores.giou == pytest.approx((1 / 2.00001 + 30 / 40.00001 + 1.0) / 3, rel=1e-12)
    assert scores.ciou == pytest.approx(31 / 42, rel=1e-9)


@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_merged_shards_equal_the_whole(cut: int) -> None:
    pairs = make_pairs(11)
    whole = scored(pairs)
    late, early = scored(pairs[cut:], start=cut), scored(pairs[:cut])
    late.merge(early)
    assert (late.count, late.giou, late.ciou) == (whole.count, whole.giou, whole.ciou)
    assert early.count == cut


def test_no_image_is_unknown() -> None:
    empty = MaskScores()
    assert (empty.count, empty.giou, empty.ciou, empty.rows()) == (0, None, None, [])


def test_rows_survive_json() -> None:
    scores = scored(make_pairs(12))
    again = MaskScores.from_rows(json.loads(json.dumps(scores.rows())))
    assert again.rows() == scores.rows()
    assert (again.giou, again.ciou) == (scores.giou, scores.ciou)
    assert list(scores.rows()[0]) == ["name", "intersection", "union", "iou"]
    assert scores.rows()[0] == {"name": "image0", "intersection": 0, "union": 0, "iou": 1.0}


def test_repeated_names_are_refused_and_nothing_is_changed() -> None:
    one, other = MaskScores(), MaskScores()
    one.add_counts("a", 1, 2)
    other.add_counts("b", 1, 2)
    other.add_counts("a", 1, 2)
    with pytest.raises(ValueError, match="'a'"):
        one.add_counts("a", 0, 1)
    with pytest.raises(ValueError, match="'a'"):
        one.merge(other)
    with pytest.raises(ValueError, match="'a'"):
        one.merge(one)
    assert [row["name"] for row in one.rows()] == ["a"]


def test_unfit_input_is_refused() -> None:
    pred: Array = np.zeros((2, 3), dtype=bool)
    target: Array = np.zeros((2, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        intersection_union(pred, target.T)
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        intersection_union(pred[None], target[None])
    with pytest.raises(ValueError, match="bool"):
        intersection_union(pred.astype(np.float32), target)
    with pytest.raises(ValueError, match="uint8"):
        intersection_union(torch.from_numpy(pred), torch.from_numpy(target).long())
    with pytest.raises(ValueError, match="other than"):
        intersection_union(pred, target + np.uint8(7))
    for counts in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="impossible"):
            MaskScores().add_counts("a", *counts)


def test_the_demos_record_says_scores_as_a_run_does() -> None:
    """docs/demo.txt is printed output: where today's words differ, benchmarks/demo_seeds.py."""
    record = (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8")
    scores = re.findall(r"gIoU ([\d.]+), cIoU ([\d.]+) over (\d+) \w+", record)
    assert scores
    for giou, ciou, count in scores:
        said = describe({"giou": float(giou), "ciou": float(ciou), "images": int(count)})
        assert f"{said}\n" in record or f"{said}," in record
