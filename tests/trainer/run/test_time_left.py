"""The time left of a whole run: of its steps and evaluations, and before these of a forecast."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PHOTOS, tiny_plan
from trainer.batch import Batch
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import collate
from trainer.reporter import Reporter
from trainer.run import step_batches
from trainer.run import time_left as module
from trainer.run.run import Run
from trainer.run.time_left import TimeLeft


def test_steps_and_evaluations_make_the_rest() -> None:
    left = TimeLeft()
    assert left.seconds(10, 2) is None
    left.evaluation = 30.0
    assert left.seconds(10, 2) is None and left.seconds(0, 0.5) == 15
    left.step_took(60.0)
    assert left.seconds(10, 2) == 660, "until there is a better one"
    for seconds in (2.0, 2.0, 90.0):
        left.step_took(seconds)
    assert left.seconds(10, 2) == 80, "without the first, and the one that waited"
    assert left.seconds(0, 0) == 0


def test_before_that_it_is_the_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    left = TimeLeft(600)
    now = 150.0
    assert left.seconds(10, 2) == 550
    now = 900.0
    assert left.seconds(10, 2) == 0
    left.evaluation = 30.0
    left.step_took(2.0)
    assert left.seconds(10, 2) == 80


def test_a_run_counts_all_its_steps_and_evaluations(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is said to take a second and every evaluation a hundred. Batches are made in the
    place of those before: a run pinned two steps' of them."""
    plan = tiny_plan(max_train_samples=4, effective_batch=2, micro_batch=2, max_val_samples=2,
                     schedule={"epochs": 2}, cached_encoders=["mask", "vision"])  # fmt: skip
    said: list[tuple[str, int, float | None]] = []
    last: list[float | None] = [None]

    def progress(what: str, done: int, total: int) -> None:
        said.append((what.partition(",")[0], done, last[0]))

    def seconds(self: TimeLeft, steps: int, evaluations: float) -> float:
        return steps + 100 * evaluations

    batches: list[weakref.ref[Batch]] = []
    there: list[int] = []

    def joined(*given: Any, **named: Any) -> Batch:
        there.append(sum(batch() is not None for batch in batches))
        batches.append(weakref.ref(batch := collate(*given, **named)))
        return batch

    monkeypatch.setattr(step_batches, "collate", joined)
    monkeypatch.setattr(TimeLeft, "seconds", seconds)
    reporter = Reporter(lambda text: None, progress, lambda left: last.__setitem__(0, left))
    items = read_split(PHOTOS, "train", 4), read_split(PHOTOS, "val", 2)
    Run(plan, *items, tmp_path / "run", cache, reporter).train()
    assert [left for what, _, left in said if what == "epoch 1/2"] == [203, 202]
    assert [left for what, _, left in said if what == "epoch 2/2"] == [101, 100]
    assert there == [0, 0, 0, 0]
    evaluating = [left for what, _, left in said if what == "evaluating"]
    assert evaluating[0] == 304 and evaluating[-1] == 0
    assert sorted(evaluating, reverse=True) == evaluating
