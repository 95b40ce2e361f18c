"""How much a score depends on the choice of images. Without torch, for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


def bootstrapped(
    count: int,
    figures: Callable[[NDArray[np.int64]], Sequence[float]],
    share: float = 0.95,
    resamples: int = 10_000,
) -> list[Interval]:
    """The bootstrap confidence interval of each figure; figures are functions of the drawn images.

    Percentiles over `count` images drawn with replacement (Efron 1979), always the same draws.
    """
    generator = np.random.default_rng(0)
    # One draw at a time: all at once would be gigabytes.
    found = [figures(generator.integers(count, size=count)) for _ in range(resamples)]
    ends = [100 * (1 - share) / 2, 100 * (1 + share) / 2]
    bounds = (np.percentile(values, ends) for values in zip(*found, strict=True))
    return [(float(low), float(high)) for low, high in bounds]
