"""A run that runs out of memory goes on with a smaller plan, and learns the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from advisor.fallback import NothingSmaller
from benchmarks.forked import lisa_train
from benchmarks.forked import run as forked
from profiles.plan import Plan
from tests.conftest import PHOTOS, ROOT
from tests.trainer.run import small_runs
from tests.trainer.run.small_runs import assert_same, outcome
from trainer.answer.trained_model import find_trained
from trainer.cli import start as start_cli
from trainer.cli.planned_run import PlannedRun
from trainer.cli.start import resume_run, start_run
from trainer.convert.export import export_trained
from trainer.model.build import read_tokenizer
from trainer.parallel.lost import is_lost
from trainer.run import checkpoint, sample_sets, validation
from trainer.run import run as loop
from trainer.run import shortages as recovery
from trainer.run.checkpoint import CheckpointError
from trainer.run.out_of_memory import is_shortage
from trainer.run.resume import check_plan
from trainer.run.started import CannotResume, Keeping, Started


def plan(**settings: Any) -> Plan:
    """That of small_runs, which trains the mask decoder as well: a third of a run's time."""
    quick = {"train": ["text_hidden_fcs", "token_rows"], "max_val_samples": 2,
             "max_train_samples": small_runs.TRAINED}  # fmt: skip
    return small_runs.plan(**quick | settings)


class Replaced(BaseException):
    """Stands for the process having become another."""


@pytest.fixture(autouse=True)
def no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(folder: Path) -> None:
        raise Replaced

    monkeypatch.setattr(recovery, "replace_process", replaced)


def beginning(folder: Path, cache: Path, **settings: Any) -> PlannedRun:
    started = Started(PHOTOS, cache, {}, Keeping(minutes=0), ("seed",))
    return PlannedRun(plan(**settings), folder, started)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    start_run(beginning(folder, cache))
    return folder


def failing_at(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, message: str = "CUDA out of memory"
) -> None:
    """The `number`-th call of what a run calls `name` runs out of memory."""
    place = {"predict": validation, "prepare_caches": sample_sets}.get(name, loop)
    real: Callable[..., Any] = getattr(place, name)
    calls = [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise torch.OutOfMemoryError(message)
        return real(*arguments, **named)

    monkeypatch.setattr(place, name, failing)


@pytest.mark.slow
def test_the_process_is_replaced_and_nothing_is_lost(
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line, with data workers: the same numbers to the last bit."""
    settings = tmp_path / "plan.json"
    settings.write_text(plan(workers=1).to_json())
    run = tmp_path / "run"
    options = ["--plan", str(settings), "--data-dir", str(PHOTOS), "--cache-dir", str(cache)]

    def planted() -> None:
        """The process that takes the place of this one is a plain one."""
        monkeypatch.undo()
        failing_at(monkeypatch, "training_step", 3, "CUDA out of memory. Tried 20.00 MiB.")
        lisa_train(*options, "--output-dir", str(run))()

    log = tmp_path / "log"
    code = forked(planted, log, {"PYTHONPATH": str(ROOT)})
    said = log.read_text()
    assert code == 0, said
    assert "out of memory while training, after step 2" in said
    assert "continuing with fp32 base, micro-batch 1, 4 of 4 layers checkpointed" in said
    assert_same(run, undisturbed)
    assert Plan.read(run / "plan.json").checkpointed_layers == 4


# Python imports it in every process; the first to get so far in training runs out of memory.
PLANTED_ONCE = """
import os, sys, threading, time
def plant():
    while not hasattr(sys.modules.get("trainer.run.run"), "Run"):
        time.sleep(0.01)
    import torch
    loop = sys.modules["trainer.run.run"]
    real, calls = loop.training_step, [0]
    def failing(*arguments):
        calls[0] += 1
        if calls[0] == 3 and os.environ["RANK"] == "1" and not os.path.exists(os.environ["ONCE"]):
            open(os.environ["ONCE"], "w").close()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)
    loop.training_step = failing
if "RANK" in os.environ:
    threading.Thread(target=plant, daemon=True).start()
"""


@pytest.mark.launcher
def test_two_processes_go_on_together(cache: Path, tmp_path: Path) -> None:
    """One of them runs out of memory; both are ended, and two others take their places.

    The first saves before it ends: no step is repeated, though the next save was minutes away.
    """
    settings = tmp_path / "plan.json"
    once_over = plan().schedule.model_dump() | {"epochs": 1}  # its last step fails
    settings.write_text(plan(processes=2, accumulation=1, schedule=once_over).to_json())
    (tmp_path / "sitecustomize.py").write_text(PLANTED_ONCE)
    run, once = tmp_path / "run", tmp_path / "once"
    options = ["--plan", str(settings), "--data-dir", str(PHOTOS), "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *options, "--output-dir", str(run)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "ONCE": str(once)},
    )  # fmt: skip
    assert done.returncode == 0 and once.exists(), done.stderr
    assert "out of memory while training, after step 2" in done.stderr
    assert re.search(r"continuing from \S+ after step 2\n", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    (_, rows) = outcome(run)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 4))


@pytest.mark.parametrize(
    ("name", "number", "phase", "step"),
    [("training_step", 1, "training", 0), ("training_step", 5, "training", 4),
     ("predict", 1, "evaluating", 0), ("predict", 4, "evaluating", 3), ("build", 1, "loading", 0),
     ("prepare_caches", 1, "building features", 0)],
)  # fmt: skip
def test_anywhere(
    name: str, number: int, phase: str, step: int,
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    failing_at(monkeypatch, name, number)
    with pytest.raises(Replaced):
        start_run(beginning(tmp_path, cache))
    ((place, short),) = recovery.shortages(tmp_path).items()
    assert (short.phase, short.step, short.error) == (phase, step, "CUDA out of memory")
    assert recovery.open_report(tmp_path) == place
    resume_run(tmp_path, None, None, {})
    assert recovery.open_report(tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_no_step_is_repeated_unless_it_was_half_an_update(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was saved for an hour: an error before the update saves, one inside it cannot."""
    from trainer import step

    for name, module, done in (("accumulate", step, 2), ("update", step, 0)):
        folder = tmp_path / name
        run = beginning(folder, cache)
        seldom = Started(run.started.data, cache, {}, Keeping(minutes=60))
        with monkeypatch.context() as patch:
            failing_at_module(patch, module, name, 3)
            with pytest.raises(Replaced):
                start_run(PlannedRun(run.plan, folder, seldom))
        state = json.loads((folder / "last" / "state.json").read_text())
        assert state["step"] == done


def failing_at_module(patch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> None:
    real, calls = getattr(module, name), [0]

    def failing(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    patch.setattr(module, name, failing)


def test_fewer_samples_at_once_go_on_the_same_curve(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order: the same losses to five digits, the same learning rates and steps."""
    settings = {"micro_batch": 2, "accumulation": 1, "checkpointed_layers": 4}
    settings |= {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "qv"}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start_run(beginning(whole, cache, **settings))
    failing_at(monkeypatch, "training_step", 3)
    with pytest.raises(Replaced):
        start_run(beginning(parts, cache, **settings))
    resume_run(parts, None, None, {})
    assert Plan.read(parts / "plan.json").micro_batch == 1
    (_, rows), (_, expected) = outcome(parts), outcome(whole)
    assert [row.pop("evaluation", "") for row in rows] == [
        row.pop("evaluation", "") for row in expected
    ]
    for row, known in zip(rows, expected, strict=True):
        assert row == pytest.approx(known, rel=1e-4)


def test_the_ladder_ends_with_what_was_tried(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", always)
        with pytest.raises(Replaced):
            start_run(beginning(tmp_path, cache, micro_batch=2, accumulation=1))
        for _ in range(2):
            with pytest.raises(Replaced):
                resume_run(tmp_path, None, None, {})
        with pytest.raises(NothingSmaller) as caught:
            resume_run(tmp_path, None, None, {})
    said = str(caught.value)
    assert said.count("training after step 0") == 3 and "micro-batch 2" in said
    # With the memory there again the last plan is tried again, and is enough.
    resume_run(tmp_path, None, None, {})
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 6


def test_a_user_setting_stays(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "training_step", 1)
    run = beginning(tmp_path, cache, micro_batch=2, accumulation=1, checkpointed_layers=4)
    started = Started(PHOTOS, cache, {}, Keeping(minutes=0), ("micro_batch",))
    with pytest.raises(Replaced):
        start_run(PlannedRun(run.plan, tmp_path, started))
    with pytest.raises(NothingSmaller):
        resume_run(tmp_path, None, None, {})


def test_of_several_processes_the_one_that_starts_them_is_replaced(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.parallel import launch

    monkeypatch.setattr(launch, "start_processes", lambda *_: start_cli.EXIT_OUT_OF_MEMORY)
    with pytest.raises(Replaced):
        start_run(beginning(tmp_path, cache, processes=2, accumulation=1))


def test_what_is_out_of_memory() -> None:
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_shortage(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_shortage(RuntimeError("out of patience"))
    assert not is_shortage(ValueError("CUBLAS_STATUS_ALLOC_FAILED"))
    nccl = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error. Last error:\n"
    assert is_shortage(dist.DistBackendError(nccl + "Cuda failure 2 'out of memory'"))
    assert is_shortage(dist.DistBackendError(nccl + "Failed to CUDA calloc async 608 bytes"))
    gone = dist.DistBackendError("NCCL error: remote process exited or there was a network error")
    assert is_lost(gone) and not is_shortage(gone)


def test_an_edited_plan_is_explained_or_refused_field_by_field() -> None:
    before = plan()
    levers = before.override(["micro_batch=2", "checkpointed_layers=2"])
    assert check_plan(levers, before) == [
        "micro_batch: 1 -> 2", "accumulation: 2 -> 1", "checkpointed_layers: 0 -> 2"
    ]  # fmt: skip
    other = before.override(["seed=3", "effective_batch=4", "schedule.epochs=1"])
    with pytest.raises(CannotResume) as caught:
        check_plan(other, before)
    assert "seed: 0 -> 3" in str(caught.value) and "effective_batch: 2 -> 4" in str(caught.value)
    assert "schedule.epochs: 2 -> 1" in str(caught.value)


def test_going_on_meets_an_edited_plan_and_a_full_card(
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is taken for a damaged checkpoint."""
    failing_at(monkeypatch, "training_step", 3)
    with pytest.raises(Replaced):
        start_run(beginning(tmp_path, cache))
    path = tmp_path / "plan.json"
    for place in (tmp_path / "out-of-memory").iterdir():
        (place / recovery.ANSWER).write_text("{}")  # as if it had gone on
    path.write_text(plan(seed=3).to_json())
    with pytest.raises(CannotResume, match="seed: 0 -> 3"):
        resume_run(tmp_path, None, None, {})
    path.write_text(plan().to_json())
    with monkeypatch.context() as patch:
        failing_at_module(patch, checkpoint, "load_state", 1)
        with pytest.raises(Replaced):
            resume_run(tmp_path, None, None, {})
    assert list(recovery.shortages(tmp_path).values())[-1].phase == "loading"
    resume_run(tmp_path, None, None, {})
    assert_same(tmp_path, undisturbed)


def test_what_is_missing_or_damaged_is_told(
    undisturbed: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    file = run / "best" / "trained.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    trained = find_trained(run)
    with pytest.raises(CheckpointError, match=r"trained.safetensors is damaged\n.*last"):
        trained.load(trained.plan, read_tokenizer(trained.plan), torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"trained.safetensors is damaged"):
        export_trained(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Records that are shorter than the checkpoint knows lose a torn line, and that is told.
    (run / "summary.json").unlink()
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows[:300])
    resume_run(run, None, None, {})
    assert "records of some steps are lost" in capsys.readouterr().err
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    # Without a checkpoint nothing is begun over what there is.
    (run / "summary.json").unlink()
    for place in (*run.glob("last*"), run / "damaged"):
        shutil.rmtree(place, ignore_errors=True)
    with pytest.raises(CannotResume, match="are gone\n.*best can still be evaluated"):
        resume_run(run, None, None, {})


def test_more_checkpoints_are_kept_and_saved_by_steps(cache: Path, tmp_path: Path) -> None:
    run = beginning(tmp_path, cache)
    keeping = Keeping(minutes=60, steps=2, checkpoints=3)
    start_run(PlannedRun(run.plan, tmp_path, Started(PHOTOS, cache, {}, keeping)))
    steps = [json.loads((tmp_path / name / "state.json").read_text())["step"]
             for name in ("last", "last-1", "last-2")]  # fmt: skip
    assert steps == [6, 6, 5]  # after the evaluation, before it, and two steps after step 3
    assert not (tmp_path / "last-3").exists() and not list(tmp_path.glob(".last*"))


def test_what_is_not_finite_is_left_out_as_often_as_allowed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import step

    real, bad = step.accumulate, {2, 5}
    calls = [0]

    def poisoned(model: torch.nn.Module, *arguments: Any) -> Any:
        calls[0] += 1
        sums = real(model, *arguments)
        if calls[0] in bad:  # the loss is a number, one gradient is not
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        return sums

    monkeypatch.setattr(step, "accumulate", poisoned)
    allowed = {"schedule": plan().schedule.model_dump() | {"max_skipped_steps": 2}}
    start_run(beginning(tmp_path / "two", cache, **allowed))
    tensors, rows = outcome(tmp_path / "two")
    left_out = [row for row in rows if "skipped" in row]
    assert [(row["step"], row["skipped"]) for row in left_out] == [(2, 1), (5, 2)]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    calls[0] = 0
    with pytest.raises(step.NotFinite, match=r"step 2: the gradient is not finite; samples of"):
        start_run(beginning(tmp_path / "none", cache))
    assert json.loads((tmp_path / "none" / "last" / "state.json").read_text())["step"] == 1
