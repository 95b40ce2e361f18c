"""How long a run still takes, by what its steps and evaluations took so far."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

RECENT = 50  # steps that are looked at: lengths, and what else runs on the machine, change


class TimeLeft:
    """The seconds left of a whole run.

    Until a step and an evaluation have been timed, a forecast gives them, if there is one.
    """

    def __init__(self, forecast_seconds: float | None = None) -> None:
        self.began, self.forecast_seconds = time.monotonic(), forecast_seconds
        self.steps: deque[float] = deque(maxlen=RECENT)
        self.warming_up = True
        self.evaluation: float | None = None  # seconds of the last one

    def step_took(self, seconds: float) -> None:
        """Learn from a step; the first one allocates and compiles, so it counts only at first."""
        if self.warming_up and self.steps:
            self.steps.clear()
            self.warming_up = False
        self.steps.append(seconds)

    def seconds(self, steps: int, evaluations: float) -> float | None:
        """Seconds that the steps and evaluations, or fractions of these, take; None: not known."""
        if (steps and not self.steps) or (evaluations and self.evaluation is None):
            if self.forecast_seconds is None:
                return None
            return max(0.0, self.forecast_seconds - (time.monotonic() - self.began))
        step = median(self.steps) if steps else 0.0
        return steps * step + evaluations * (self.evaluation or 0.0)
