"""Qwen3-VL and SAM 2 in small, on a mixture: ended in the middle, and out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_qwen import forget, register, small
from tests.trainer.data.small_sets import write_all
from tests.trainer.run.small_runs import assert_same, outcome, plan
from trainer.cli.planned_run import PlannedRun
from trainer.cli.start import resume_run, start_run
from trainer.run import run as loop
from trainer.run import shortages
from trainer.run.started import Keeping, Started
from trainer.step import training_step


class Gone(BaseException):
    """Stands for the process being gone, or having become another."""


@pytest.fixture(scope="module", autouse=True)
def the_small_one_is_known() -> Iterator[None]:
    register(small(sources=("packaged",)))
    yield
    forget()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    """Of every kind of data, two questions a row where there are two; two epochs of two steps."""
    root = write_all(tmp_path_factory.mktemp("data"))
    mixed = plan(
        model="small-qwen", weights="random", quantization="nf4", questions_per_picture=2,
        mixture={"reason_seg": 1, "refer_seg": 1, "sem_seg": 1, "vqa": 1, "samples": 8},
        micro_batch=2, effective_batch=4, accumulation=None, max_val_samples=1,
        tokens={"max_masks": 3}, train=["text_hidden_fcs", "token_rows"],
    )  # fmt: skip
    started = Started(root, tmp_path_factory.mktemp("cache"), {}, Keeping(minutes=0))
    return PlannedRun(mixed, tmp_path_factory.mktemp("whole"), started)


@pytest.fixture(scope="module")
def undisturbed(begun: PlannedRun) -> Path:
    start_run(begun)
    return begun.folder


def test_a_mixture_trains_rows_of_several_questions(undisturbed: Path) -> None:
    rows = [row for row in outcome(undisturbed)[1] if "loss" in row]
    assert len(rows) == 4 and all(row["loss"] > 0 for row in rows)
    assert any(row["bce"] > 0 for row in rows)


@pytest.mark.parametrize("error", [Gone, torch.OutOfMemoryError("CUDA out of memory")])
def test_a_run_ended_in_the_middle_goes_on_bit_for_bit(
    error: BaseException, begun: PlannedRun, undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In its second epoch; out of memory it goes on with layers checkpointed."""
    left = iter([None, None, error])

    def failing(*given: Any) -> Any:
        if (found := next(left)) is not None:
            raise found
        return training_step(*given)

    def replaced(folder: Path) -> None:
        raise Gone

    monkeypatch.setattr(loop, "training_step", failing)
    monkeypatch.setattr(shortages, "replace_process", replaced)
    with pytest.raises(Gone):
        start_run(PlannedRun(begun.plan, tmp_path, begun.started))
    monkeypatch.undo()
    resume_run(tmp_path, None, None, {})
    assert_same(tmp_path, undisturbed)
