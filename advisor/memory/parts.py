"""What a plan's pool holds at its peak, in parts that a reader tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiles.grid import caching_bytes, estimate
from profiles.plan import Plan

if TYPE_CHECKING:
    from advisor.memory.forecast import Forecast

WEIGHTS = ("frozen weights", "encoders")
TRAINED = ("adapters", "trained rows", "mask decoder", "other trained", "gradients",
           "gradient buckets", "optimizer state")  # fmt: skip
LASTING = ("weights", "trained")  # parts that the size of a picture does not change
CACHING = "caching"  # the one part where building the feature cache takes more than a step


def parts_of(
    plan: Plan, text_tokens: int, pool_bytes: int, forecast: Forecast | None = None
) -> dict[str, int]:
    """`pool_bytes` divided into frozen weights, everything trained, and the rest.

    One part, `caching`, if building the feature cache takes more than a step. By the plan's own
    forecast, or else by the grid; empty where neither reaches.
    """
    if forecast is not None:
        live, step = forecast.live_at_peak, forecast.tier("pool").bytes
        frozen, trained = (sum(live.get(n, 0) for n in names) for names in (WEIGHTS, TRAINED))
    else:
        found = estimate(plan, text_tokens)
        if found is None:
            return {}
        frozen, trained, step = found.frozen_bytes, found.trained_bytes, found.step_bytes
    caching = caching_bytes(plan)
    if caching > step or caching == pool_bytes:  # a row may have taken less than its forecast
        return {CACHING: pool_bytes}
    rest = max(0, pool_bytes - frozen - trained)
    return {"weights": frozen, "trained": trained, "activations": rest}
