"""What the advice has forecast of a run, beside what the run took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiles.sizes import gib
from profiles.text import time_text

SLOWER = 1.5  # times the forecast: the measured rates of cards differ by less


@dataclass(frozen=True)
class Expected:
    """What the advice has forecast of a run; None where it has not."""

    seconds: float | None = None  # of the whole run
    pool_bytes: int | None = None  # at most


NOTHING = Expected()


def beside_forecast(
    expected: Expected, seconds: float | None, peaks: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Forecast and measured figures of a run, and a warning for each forecast that was exceeded.

    `seconds`: of the whole run, None if it was resumed.
    """
    pool = peaks.get("peak_reserved_bytes")
    found = {"forecast": {"seconds": expected.seconds, "pool_bytes": expected.pool_bytes},
             "measured": {"seconds": seconds, "pool_bytes": pool}}  # fmt: skip
    warnings = []
    if expected.pool_bytes and pool and pool > expected.pool_bytes:
        warnings.append(f"the pool took {gib(pool)}; {gib(expected.pool_bytes)} were forecast")
    if expected.seconds and seconds and seconds > SLOWER * expected.seconds:
        warnings.append(f"took {time_text(seconds)}; {time_text(expected.seconds)} were forecast")
    return found, warnings
