"""Training losses of LISA as plain sums.

Every function returns a sum or one value per mask, never a batch mean. The caller counts tokens
and masks over the whole effective batch (all micro-batches of all ranks) and divides once, so the
loss and its gradient do not depend on how that batch was split.

Objective (Lai et al., "LISA: Reasoning Segmentation via Large Language Model", 2023):
``1.0 * ce / tokens + 2.0 * bce / masks + 0.5 * dice / masks``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.ignored import IGNORE_LABEL as IGNORE_LABEL
from trainer.ignored import IGNORE_PIXEL as IGNORE_PIXEL


@dataclass(frozen=True)
class LossWeights:
    """Unitless weights of the three terms (defaults: LISA's)."""

    ce: float = 1.0
    bce: float = 2.0
    dice: float = 0.5


@dataclass(frozen=True)
class Totals:
    """Counts over the whole effective batch: supervised tokens and masks.

    Raises:
        ValueError: a count is negative.
    """

    tokens: int
    masks: int

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.masks < 0:
            raise ValueError(f"totals must not be negative: {self}")


_DEFAULT_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class LossSums:
    """Summed losses of one micro-batch, each a scalar tensor (in nats for ce and bce).

    Attributes:
        ce: cross-entropy summed over the supervised tokens.
        bce: ``mask_bce_per_mask`` summed over the masks.
        dice: ``mask_dice_per_mask`` summed over the masks.
    """

    ce: Tensor
    bce: Tensor
    dice: Tensor

    def weighted(self, totals: Totals, weights: LossWeights = _DEFAULT_WEIGHTS) -> Tensor:
        """This micro-batch's share of the objective, a scalar.

        With the same ``totals`` for each, the shares of all micro-batches add up to the loss of
        the effective batch. A term whose total is 0 is 0.
        """
        return (
            _divided(self.ce, totals.tokens, weights.ce)
            + _divided(self.bce, totals.masks, weights.bce)
            + _divided(self.dice, totals.masks, weights.dice)
        )


def _divided(value: Tensor, total: int, weight: float) -> Tensor:
    """``weight * value / total``, or 0 where there is nothing to average over."""
    if total == 0:
        # Multiplied, not replaced by a constant: the parameters behind the term stay in the graph
        # with zero gradient, which data-parallel wrappers need. A sum over nothing is finite.
        return value * 0.0
    return value * (weight / total)


def _for_maths(logits: Tensor) -> Tensor:
    """``logits`` in at least fp32: double stays double, anything narrower is widened."""
    return logits if logits.dtype == torch.float64 else logits.float()


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the supervised tokens.

    Args:
        logits: [N, V], any floating type; already aligned with the labels (shifted by the caller).
        labels: [N], int64 token ids; ``IGNORE_LABEL`` marks an unsupervised token.

    Returns:
        Scalar in nats, fp32 (double for double logits); 0 where no token is supervised.

    Raises:
        ValueError: the shapes do not match.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [N, V] and labels [N], got {list(logits.shape)}, {list(labels.shape)}"
        )
    # Filled, not selected: a selection waits for the GPU to count. Where nothing is supervised the
    # gradient is exactly zero even if the logits are not finite.
    rows = _for_maths(logits).masked_fill((labels == IGNORE_LABEL)[:, None], 0.0)
    return F.cross_entropy(rows, labels, reduction="sum", ignore_index=IGNORE_LABEL)


def check_target(target: Tensor) -> None:
    """Refuse a mask target [M, R, R] with other values than 0, 1 and 255. Raises ValueError.

    Called where batches are made: on the GPU, reading the values would make every step wait.
    """
    if bool(((target > 1) & (target != IGNORE_PIXEL)).any()):
        raise ValueError("mask target holds values other than 0, 1 and 255")


def _mask_inputs(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Checked ``(logits, target, valid)``, all [M, R, R] in the type of the maths.

    At ignored pixels all three are 0, and no gradient flows back to the logits.

    Raises:
        ValueError: shapes differ, or the target is not uint8.
    """
    if logits.ndim != 3 or target.shape != logits.shape:
        raise ValueError(
            f"expected logits and target [M, R, R], got {list(logits.shape)}, {list(target.shape)}"
        )
    if target.dtype != torch.uint8:
        raise ValueError(f"expected a uint8 target, got {target.dtype}")
    valid = target != IGNORE_PIXEL
    # Filled rather than multiplied: 0 * inf would carry NaN from an ignored pixel into the sum.
    wide = _for_maths(logits).masked_fill(~valid, 0.0)
    return wide, (target == 1).to(wide.dtype), valid.to(wide.dtype)


def mask_bce_per_mask(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy with logits, averaged over the valid pixels of each mask.

    Args:
        logits: [M, R, R], any floating type.
        target: [M, R, R] uint8: 0 background, 1 object, 255 ignored.

    Returns:
        [M] in nats, fp32 (double for double logits). A mask with no valid pixel gives 0 and zero
        gradient.

    Raises:
        ValueError: shapes differ, or the target is not uint8.
    """
    x, t, valid = _mask_inputs(logits, target)
    per_pixel = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    total = (per_pixel * valid).sum(dim=(1, 2))
    return total / valid.sum(dim=(1, 2)).clamp(min=1.0)


def mask_dice_per_mask(
    logits: Tensor, target: Tensor, scale: float = 1000.0, eps: float = 1e-6
) -> Tensor:
    """Soft Dice loss of each mask over its valid pixels.

    With p = sigmoid(logits), t = target and s = scale:
    ``1 - (2 * sum(p/s * t) + eps) / (sum(p/s) + sum(t/s) + eps)``.
    This is the form of LISA's published code; dice itself is from V-Net (Milletari et al., 2016),
    whose denominator has squared sums instead of plain ones. The scale only sets how much eps
    counts: eps * s pixels, 0.001 by default.

    Args:
        logits: [M, R, R], any floating type.
        target: [M, R, R] uint8: 0 background, 1 object, 255 ignored (left out of p and of t).
        scale: divisor s of both sums, positive.
        eps: added to numerator and denominator, positive; keeps an empty mask finite.

    Returns:
        [M] in [0, 1], fp32 (double for double logits). A mask with no valid pixel gives 0 and
        zero gradient.

    Raises:
        ValueError: shapes differ, or the target is not uint8.
    """
    x, t, valid = _mask_inputs(logits, target)
    p = x.sigmoid() * valid
    overlap = (p / scale * t).sum(dim=(1, 2))
    size = (p / scale).sum(dim=(1, 2)) + (t / scale).sum(dim=(1, 2))
    return 1.0 - (2.0 * overlap + eps) / (size + eps)
