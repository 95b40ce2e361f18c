"""The losses against plain float64 loops, their gradients, and their sums over splits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.ignored import IGNORE_LABEL
from trainer.losses import (
    LossSums,
    LossWeights,
    Totals,
    check_target,
    cross_entropy_sum,
    mask_bce_per_mask,
    mask_dice_per_mask,
)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def plain_ce(logits: Tensor, labels: Tensor) -> float:
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        if label != -100:
            top = max(row)
            total += top + math.log(sum(math.exp(v - top) for v in row)) - row[label]
    return total


def pixels(logits: Tensor, target: Tensor) -> list[list[tuple[float, int]]]:
    """Per mask, its valid pixels as (logit, target)."""
    flat = zip(logits.double().flatten(1).tolist(), target.flatten(1).tolist(), strict=True)
    return [[(x, t) for x, t in zip(xs, ts, strict=True) if t != 255] for xs, ts in flat]


def plain_bce(logits: Tensor, target: Tensor) -> list[float]:
    return [
        sum(softplus(-x) if t else softplus(x) for x, t in mask) / len(mask) if mask else 0.0
        for mask in pixels(logits, target)
    ]


def plain_dice(logits: Tensor, target: Tensor) -> list[float]:
    out = []
    for mask in pixels(logits, target):
        overlap = sum(sigmoid(x) / 1000 * t for x, t in mask)
        size = sum(sigmoid(x) / 1000 for x, _ in mask) + sum(t / 1000 for _, t in mask)
        out.append(1 - (2 * overlap + 1e-6) / (size + 1e-6))
    return out


def make_masks(seed: int, m: int = 7, r: int = 9, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random masks; 0 is all background, 1 is all ignored, 2 is all object."""
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(m, r, r, generator=gen, dtype=torch.float64) * spread
    target = torch.tensor([0, 1, 255], dtype=torch.uint8)[
        torch.randint(0, 3, (m, r, r), generator=gen)
    ]
    target[0], target[1], target[2] = 0, 255, 1
    return logits, target


def make_tokens(seed: int, n: int = 20, v: int = 11) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=gen, dtype=torch.float64) * 4
    labels = torch.randint(0, v, (n,), generator=gen)
    labels[torch.rand(n, generator=gen) < 0.4] = IGNORE_LABEL
    return logits, labels


DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 2e-5)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_values_match_plain_loops(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    # The reference reads the already rounded logits, so the tolerance of bf16 is that of fp32.
    result = torch.float64 if dtype == torch.float64 else torch.float32
    logits, labels = make_tokens(seed)
    ce = cross_entropy_sum(logits.to(dtype), labels)
    assert ce.dtype == result and ce.shape == ()
    assert ce.item() == pytest.approx(plain_ce(logits.to(dtype), labels), rel=tolerance)
    x, target = make_masks(seed)
    x = x.to(dtype)
    for ours, plain in ((mask_bce_per_mask, plain_bce), (mask_dice_per_mask, plain_dice)):
        value = ours(x, target)
        assert value.dtype == result and value.shape == (7,)
        assert value.tolist() == pytest.approx(plain(x, target), rel=tolerance, abs=tolerance)


def test_fp32_maths_under_autocast() -> None:
    x, target = make_masks(5)
    x = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bce, dice = mask_bce_per_mask(x, target), mask_dice_per_mask(x, target)
    assert bce.dtype == dice.dtype == torch.float32
    assert bce.tolist() == pytest.approx(plain_bce(x, target), rel=2e-5)
    assert dice.tolist() == pytest.approx(plain_dice(x, target), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    x, target = make_masks(6)
    x = (x.sign() * size).float().requires_grad_()
    bce, dice = mask_bce_per_mask(x, target), mask_dice_per_mask(x, target)
    assert bce.tolist() == pytest.approx(plain_bce(x.detach(), target), rel=2e-5)
    if size < 1e3:  # beyond, math.exp in the reference overflows or underflows to the same
        assert dice.tolist() == pytest.approx(plain_dice(x.detach(), target), rel=2e-5, abs=2e-5)
    rows = torch.tensor([[size, -size], [size, -size]], requires_grad=True)
    ce = cross_entropy_sum(rows, torch.tensor([0, 1]))
    assert ce.item() == pytest.approx(2 * size, rel=1e-6)
    (bce.sum() + dice.sum() + ce).backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert rows.grad is not None and bool(rows.grad.isfinite().all())


def test_known_values() -> None:
    target = torch.tensor([[[1, 0], [1, 0]]], dtype=torch.uint8)
    zeros = torch.zeros(1, 2, 2)
    assert mask_bce_per_mask(zeros, target).item() == pytest.approx(math.log(2))
    # p = 1/2 everywhere: overlap 1/s, size 4/s.
    expected = 1 - (2e-3 + 1e-6) / (4e-3 + 1e-6)
    assert mask_dice_per_mask(zeros, target).item() == pytest.approx(expected, rel=1e-5)
    right = torch.where(target == 1, 100.0, -100.0)
    assert mask_dice_per_mask(right, target).item() == pytest.approx(0.0, abs=1e-6)
    assert mask_dice_per_mask(-right, target).item() == pytest.approx(1 - 1e-6 / 4.001e-3, rel=1e-5)
    assert cross_entropy_sum(torch.zeros(3, 8), torch.tensor([1, -100, 7])).item() == pytest.approx(
        2 * math.log(8)
    )


def test_all_ignored_mask_is_zero_with_zero_gradient() -> None:
    x, target = make_masks(7)
    for loss in (mask_bce_per_mask, mask_dice_per_mask):
        leaf = x.float().requires_grad_()
        value = loss(leaf, target)
        assert value[1].item() == 0.0
        value.sum().backward()
        assert leaf.grad is not None
        assert bool((leaf.grad[target == 255] == 0).all())
        assert bool((leaf.grad[0] != 0).all())


def test_not_finite_values_at_ignored_places_have_no_effect() -> None:
    x, target = make_masks(8)
    spoilt = x.clone()
    spoilt[target == 255] = torch.nan
    spoilt[1, 0, 0] = torch.inf
    for loss in (mask_bce_per_mask, mask_dice_per_mask):
        leaf = spoilt.clone().requires_grad_()
        value = loss(leaf, target)
        assert torch.equal(value, loss(x, target))
        value.sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    logits, labels = make_tokens(8)
    bad = logits.clone()
    bad[labels == IGNORE_LABEL] = torch.nan
    bad.requires_grad_()
    value = cross_entropy_sum(bad, labels)
    assert torch.equal(value, cross_entropy_sum(logits, labels))
    value.backward()
    assert bad.grad is not None and bool(bad.grad.isfinite().all())


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_supervised(n: int) -> None:
    logits = torch.randn(n, 5, requires_grad=True)
    masks = torch.randn(0, 4, 4, requires_grad=True)
    no_target = torch.zeros(0, 4, 4, dtype=torch.uint8)
    sums = LossSums(
        cross_entropy_sum(logits, torch.full((n,), IGNORE_LABEL)),
        mask_bce_per_mask(masks, no_target).sum(),
        mask_dice_per_mask(masks, no_target).sum(),
    )
    loss = sums.weighted(Totals(0, 0), LossWeights())
    assert loss.item() == 0.0
    loss.backward()  # still in the graph
    assert logits.grad is not None and bool((logits.grad == 0).all())
    assert masks.grad is not None


def test_gradients() -> None:
    logits, labels = make_tokens(9, n=6, v=5)
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy_sum(z, labels), (logits.requires_grad_(),)
    )
    x, target = make_masks(9, m=4, r=3, spread=1.0)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mask_bce_per_mask(z, target), (x,))
    assert torch.autograd.gradcheck(lambda z: mask_dice_per_mask(z, target), (x,))


def share(x: Tensor, target: Tensor, logits: Tensor, labels: Tensor, totals: Totals) -> Tensor:
    return LossSums(
        ce=cross_entropy_sum(logits, labels),
        bce=mask_bce_per_mask(x, target).sum(),
        dice=mask_dice_per_mask(x, target).sum(),
    ).weighted(totals, LossWeights())


@pytest.mark.parametrize("cuts", [[1, 6], [3, 4], [7, 0], [2, 1, 4], [1] * 7])
def test_splits_add_up_to_the_whole_in_value_and_gradient(cuts: list[int]) -> None:
    x, target = make_masks(10)
    logits, labels = make_tokens(10, n=7)
    totals = Totals(int((labels != IGNORE_LABEL).sum()), 7)
    whole_x, whole_logits = x.clone().requires_grad_(), logits.clone().requires_grad_()
    whole = share(whole_x, target, whole_logits, labels, totals)
    whole.backward()
    x.requires_grad_()
    logits.requires_grad_()
    total = 0.0
    start = 0
    for size in cuts:
        part_of = slice(start, start + size)
        part = share(x[part_of], target[part_of], logits[part_of], labels[part_of], totals)
        part.backward()
        total += part.item()
        start += size
    assert start == 7
    assert total == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(x.grad, whole_x.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(logits.grad, whole_logits.grad, rtol=1e-12, atol=1e-15)


def test_weighted() -> None:
    sums = LossSums(torch.tensor(6.0), torch.tensor(4.0), torch.tensor(2.0))
    assert sums.weighted(Totals(3, 4)).item() == pytest.approx(2.0 + 2.0 + 0.25)
    assert sums.weighted(Totals(3, 4), LossWeights(0.0, 1.0, 3.0)).item() == pytest.approx(2.5)
    assert sums.weighted(Totals(0, 4)).item() == pytest.approx(2.25)
    assert sums.weighted(Totals(3, 0)).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="negative"):
        Totals(-1, 0)


def test_unfit_input_is_refused() -> None:
    x = torch.zeros(1, 2, 2)
    target = torch.zeros(1, 2, 2, dtype=torch.uint8)
    for loss in (mask_bce_per_mask, mask_dice_per_mask):
        with pytest.raises(ValueError, match=r"\[M, R, R\]"):
            loss(x, target[0])
        with pytest.raises(ValueError, match="uint8"):
            loss(x, target.float())
    with pytest.raises(ValueError, match="other than 0, 1 and 255"):
        check_target(target + 2)
    check_target(torch.tensor([0, 1, 255], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[N, V\]"):
        cross_entropy_sum(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))
