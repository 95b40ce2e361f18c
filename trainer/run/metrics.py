"""Segmentation scores of the reasoning-segmentation benchmark: gIoU and cIoU.

A prediction is ``logits > 0`` at the image's original size. Pixels whose target is 255 drop out of
both sides. With I and U the pixel counts of intersection and union of one image:

* gIoU = mean over images of I / (U + 1e-5). An image with U = 0 counts 1.0: it has no target and
  nothing was predicted.
* cIoU = (sum of I) / (sum of U + 1e-10), so large objects weigh more.

Both follow Lai et al., "LISA: Reasoning Segmentation via Large Language Model" (2023),
with the constants of its published code. This gIoU is LISA's mean per-image IoU; it is not the
"generalised IoU" of boxes (Rezatofighi et al., 2019) that goes by the same abbreviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trainer.ignored import IGNORE_PIXEL
from trainer.run.intervals import Interval, bootstrapped

GIOU_EPS = 1e-5
CIOU_EPS = 1e-10

MaskT = TypeVar("MaskT", Tensor, npt.NDArray[Any])
"""A torch tensor (any device) or a numpy array; both masks of a pair are of one kind."""


def intersection_union(pred: MaskT, target: MaskT) -> tuple[int, int]:
    """Pixel counts of intersection and union over the pixels that are scored.

    Args:
        pred: [H, W] bool.
        target: [H, W] uint8: 0 background, 1 object, 255 ignored.

    Returns:
        ``(intersection, union)`` in pixels.

    Raises:
        ValueError: the shapes differ or are not [H, W], a dtype is wrong, or the target holds a
            value not in {0, 1, 255}.
    """
    if pred.ndim != 2 or tuple(pred.shape) != tuple(target.shape):
        raise ValueError(f"expected two [H, W] masks, got {list(pred.shape)}, {list(target.shape)}")
    # By name, since the two libraries' dtype objects do not compare with one another.
    dtypes = [str(mask.dtype).removeprefix("torch.") for mask in (pred, target)]
    if dtypes != ["bool", "uint8"]:
        raise ValueError(f"expected bool prediction and uint8 target, got {dtypes}")
    valid = target != IGNORE_PIXEL
    if bool(((target > 1) & valid).any()):
        raise ValueError("target holds values other than 0, 1 and 255")
    truth = target == 1
    return int((pred & truth).sum()), int(((pred | truth) & valid).sum())


@dataclass(frozen=True)
class ImageScore:
    """Counts of one image, in pixels.

    Raises:
        ValueError: not 0 <= intersection <= union.
    """

    name: str
    intersection: int
    union: int

    def __post_init__(self) -> None:
        if not 0 <= self.intersection <= self.union:
            raise ValueError(f"impossible counts: {self}")

    @property
    def iou(self) -> float:
        """I / (U + 1e-5), or 1.0 where U = 0."""
        return 1.0 if self.union == 0 else self.intersection / (self.union + GIOU_EPS)


@dataclass
class MaskScores:
    """Accumulates images, from one process or merged from several.

    Names identify the scored samples and must be unique: samplers pad the last shard with repeats,
    and a repeat counted twice would shift both scores without a trace.
    """

    _images: dict[str, ImageScore] = field(default_factory=dict)

    def add(self, name: str, pred: MaskT, target: MaskT) -> ImageScore:
        """Score one image (masks as in ``intersection_union``) and return its counts.

        Raises:
            ValueError: a mask is invalid, or ``name`` was added before.
        """
        return self.add_counts(name, *intersection_union(pred, target))

    def add_counts(self, name: str, intersection: int, union: int) -> ImageScore:
        """Add one image by its pixel counts.

        Raises:
            ValueError: not 0 <= intersection <= union, or ``name`` was added before.
        """
        image = ImageScore(name, intersection, union)
        self._require_new([name])
        self._images[name] = image
        return image

    def merge(self, other: MaskScores) -> None:
        """Add all images of ``other``, which stays unchanged.

        Raises:
            ValueError: a name is in both; nothing is added then.
        """
        self._require_new(other._images)
        self._images.update(other._images)

    def _require_new(self, names: Iterable[str]) -> None:
        repeated = sorted(name for name in names if name in self._images)
        if repeated:
            raise ValueError(f"scored already: {repeated[:5]} ({len(repeated)} in all)")

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self._images)

    @property
    def giou(self) -> float | None:
        """Mean per-image IoU in [0, 1]; None with no image, since it is then unknown."""
        if not self._images:
            return None
        # fsum is exact, so the score does not depend on the order in which shards were merged.
        return math.fsum(image.iou for image in self._images.values()) / self.count

    @property
    def ciou(self) -> float | None:
        """Cumulative IoU in [0, 1]; None with no image.

        By the formula it is 0.0 (not 1.0, as each image's IoU) where every union is empty.
        """
        if not self._images:
            return None
        intersection = sum(image.intersection for image in self._images.values())
        union = sum(image.union for image in self._images.values())
        return intersection / (union + CIOU_EPS)

    def rows(self) -> list[dict[str, str | int | float]]:
        """Per image, in the order added: ``name``, ``intersection``, ``union`` (pixels), ``iou``.

        Plain values, ready for JSON and for ``from_rows``.
        """
        return [
            {
                "name": image.name,
                "intersection": image.intersection,
                "union": image.union,
                "iou": image.iou,
            }
            for image in self._images.values()
        ]

    def intervals(self, share: float = 0.95, resamples: int = 10_000) -> dict[str, Interval]:
        """Bootstrap confidence intervals of "giou" and "ciou"; empty below two images.

        They speak of the choice of images alone, not of the training's seed.
        """
        if self.count < 2:
            return {}
        images = self._images.values()
        iou = np.array([image.iou for image in images])
        intersection = np.array([image.intersection for image in images], np.float64)
        union = np.array([image.union for image in images], np.float64)

        def scores(drawn: npt.NDArray[np.int64]) -> tuple[float, float]:
            ciou = intersection[drawn].sum() / (union[drawn].sum() + CIOU_EPS)
            return iou[drawn].mean(), ciou

        giou, ciou = bootstrapped(self.count, scores, share, resamples)
        return {"giou": giou, "ciou": ciou}

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> MaskScores:
        """Rebuild from ``rows()``; ``iou`` is computed again from the counts.

        Raises:
            KeyError: a row lacks a field.
            ValueError: impossible counts or a repeated name.
        """
        scores = cls()
        for row in rows:
            scores.add_counts(str(row["name"]), int(row["intersection"]), int(row["union"]))
        return scores
