"""The last lever: smaller pictures. They change what the model sees, so a note says so."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from advisor.advice import Advice
from advisor.choice.search import correction_of
from advisor.memory.parts import LASTING
from advisor.rehearsal import RehearsalFailed
from advisor.report.findings import SETTINGS, smaller_pictures
from advisor.request import Request
from profiles.pictures import limits_for
from profiles.tested import Verdict

EIGHTHS = (1, 2, 3, 4, 5, 6, 7)  # of the tokens that a picture may take


def with_smaller_pictures(
    request: Request, large: Advice, advised: Callable[[Request], Advice]
) -> Advice | None:
    """The advice of `advised` that shrinks pictures the least, where `large` has no plan that fits.

    The smallest size is tried first, since it often rules out all others. Its forecast corrects the
    grid's figures, which are for whole pictures, so the sizes between mostly need one forecast
    each.
    """
    whole = large.plan
    limited = request.pinned & {"min_pixels", "max_pixels"}
    if request.live is None or limited or whole is None or not whole.profile.tokens_vary:
        return None
    lasting = sum(large.parts.get(part, 0) for part in LASTING)
    if large.budget is not None and lasting > large.budget.cap_bytes:
        return None  # at any size of pictures
    most = whole.profile.most_image_tokens

    @cache
    def shrunk(eighths: int) -> Advice:
        limit = limits_for(whole, most * eighths // 8)["max_pixels"]
        settings = (*request.overrides, f"max_pixels={limit}")
        return advised(replace(request, overrides=settings, guess=guess(eighths)))

    def guess(eighths: int) -> float:
        first = EIGHTHS[0]
        forecast = None if eighths == first else shrunk(first).forecast
        if forecast is None or not forecast.tiers:
            return 1.0
        least = correction_of(forecast.plan, forecast.tier("pool").bytes, forecast.text_tokens)
        return least + (1 - least) * (eighths - first) / (len(EIGHTHS) + 1 - first)

    def verdict(eighths: int) -> Verdict:
        """A forecast that fails leaves the answer as it was."""
        try:
            return shrunk(eighths).verdict
        except RehearsalFailed:
            return "UNKNOWN"

    if verdict(EIGHTHS[0]) not in ("FITS", "TIGHT"):
        return None
    fitting = bisect_left(EIGHTHS, True, key=lambda eighths: verdict(eighths) != "FITS")
    best = shrunk(EIGHTHS[max(0, fitting - 1)])
    kept = [finding for finding in large.findings if finding.where == SETTINGS]
    findings = (smaller_pictures(best.plan, most, bool(kept)), *kept, *best.findings)
    return best.model_copy(update={"findings": findings})
