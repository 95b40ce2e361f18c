"""How far a run is, and what it may leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.step import NotFinite, StepResult


@dataclass
class Progress:
    """How far a run is, and the results so far."""

    step: int = 0  # optimizer steps
    evaluated: int = 0  # epochs
    skipped: int = 0  # updates left out because they were not finite
    stale: int = 0  # evaluations since the best one
    saves: int = 0  # states saved, by all processes that have worked on the run
    best: float | None = None  # gIoU
    best_at: dict[str, Any] | None = None  # the best evaluation, and its epoch
    before: dict[str, Any] = field(default_factory=dict)  # evaluation before training
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last evaluation

    def summary(self) -> dict[str, Any]:
        """The results, as summary.json has them."""
        return {
            "before": self.before,
            "after": self.metrics,
            "best_giou": self.best,
            "best": self.best_at,
            "epochs": self.evaluated,
            "steps": self.step,
        }

    def add_evaluation(self, metrics: dict[str, Any], epoch: int) -> bool:
        """Take in the evaluation after an epoch; whether it is the best so far."""
        self.evaluated, self.metrics = epoch, metrics
        giou = metrics["giou"]
        if self.best is None or (giou or 0.0) > self.best:
            self.best, self.best_at, self.stale = giou or 0.0, metrics | {"epoch": epoch}, 0
            return True
        self.stale += giou is not None
        return False

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the plan's patience is over: so many evaluations in a row were no better."""
        return patience is not None and self.stale >= patience

    def left(self, epochs: int, epoch_steps: int, evaluating: float | None) -> tuple[int, float]:
        """Steps and evaluations left; `evaluating`: the share left of the current evaluation."""
        evaluations: float = epochs - self.evaluated
        if evaluating is not None:  # one that is not before the training counts already
            evaluations += evaluating - (self.step > self.evaluated * epoch_steps)
        return epochs * epoch_steps - self.step, evaluations


def unless_not_finite(
    step: Callable[[], StepResult],
    progress: Progress,
    allowed: int,
    report: Callable[[str], None],
) -> StepResult | None:
    """The result of `step`; None if a number was not finite and the plan allows skipping it."""
    try:
        return step()
    except NotFinite as error:
        if progress.skipped >= allowed:
            raise NotFinite(
                f"step {progress.step + 1}: {error}\n    hint: look at these samples; a new run "
                "may lower --set schedule.learning_rate=R, or skip such steps with "
                f"--set schedule.max_skipped_steps=N (now {allowed}); nothing was updated"
            ) from None
        progress.skipped += 1
        report(f"step {progress.step + 1} skipped ({progress.skipped} of {allowed}): {error}")
        return None
