"""A run that is ended anywhere goes on as if nothing had happened, bit for bit on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from typer.testing import CliRunner

from benchmarks.forked import end, lisa_train
from profiles.levers import next_relief
from profiles.plan import Plan
from tests.conftest import PHOTOS, ROOT, tiny_plan
from tests.group import begun, together
from tests.trainer.run import small_runs
from tests.trainer.run.small_runs import (
    QUIET,
    SELDOM,
    assert_same,
    items,
    outcome,
    plan,
    started,
)
from trainer.cli.planned_run import PlannedRun, write_start
from trainer.cli.train import app
from trainer.data.contents import Contents
from trainer.data.feature_cache import BadEntry
from trainer.data.formats.reasonseg import read_split
from trainer.model.build import check_compiler
from trainer.model.footprint import DoesNotFit
from trainer.parallel.accelerator import between_processes
from trainer.reporter import Reporter
from trainer.run import checkpoint
from trainer.run import run as loop
from trainer.run.checkpoint_files import damage
from trainer.run.data_digests import check_data, digests
from trainer.run.folder import is_complete
from trainer.run.resume import check_plan, resumable, with_more_epochs
from trainer.run.run import Interrupted, Run
from trainer.run.started import CannotResume, Keeping, Started
from trainer.run.validation import outcome as told
from trainer.run.workers import WorkerEnded
from trainer.run.write_failure import NotWritten


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    started(folder, cache, keeping=SELDOM).train()
    return folder


class Ended(BaseException):
    """Stands for the process being gone."""


def ending_at(what: str, number: int) -> Reporter:
    """Ends the process at the `number`-th sign of progress of that kind."""
    count = [0]

    def progress(kind: str, done: int, total: int) -> None:
        count[0] += kind.startswith(what)
        if count[0] == number:
            raise Ended

    return Reporter(lambda text: None, progress)


def go_on(folder: Path, cache: Path, **settings: Any) -> dict[str, Any]:
    run = started(folder, cache, **{"keeping": SELDOM} | settings)
    return run.train(resumable(folder, lambda line: None))


@pytest.mark.parametrize(
    ("what", "number"), [("epoch 1/2", 2), ("evaluating", 5), ("epoch 2/2", 2)]
)
def test_ended_anywhere(
    what: str, number: int, undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    """In steps of both epochs, and in the evaluation between them."""
    with pytest.raises(Ended):
        started(tmp_path, cache, ending_at(what, number)).train()
    summary = go_on(tmp_path, cache)
    assert_same(tmp_path, undisturbed)
    known = json.loads((undisturbed / "summary.json").read_text())
    assert summary["receipts"] and not summary["warnings"]
    ours = {"seconds": 0, "measured": {}}  # of a resumed run the whole time is not known
    assert summary | ours == known | ours


def test_more_epochs_continue_as_a_run_that_had_them(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    """Also where the run had ended: a linear decay is the longer run's from there on."""
    shutil.copytree(undisturbed, longer := tmp_path / "longer")
    changes = ["schedule.epochs=3"]
    assert with_more_epochs(plan(), changes, longer)
    more = plan().override(changes).schedule.model_dump()
    said: list[str] = []
    run = started(longer, cache, Reporter(said.append, QUIET.progress), schedule=more)
    run.train(resumable(longer, said.append))
    tensors, rows = outcome(longer)
    assert rows[: len(outcome(undisturbed)[1])] == outcome(undisturbed)[1]
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[6:] == pytest.approx([1e-3 * (9 - step) / 8 for step in range(6, 9)])
    assert "2 -> 3 epochs: the learning rate goes on as in a run of 3, now at 0.000375" in said
    assert any(not torch.equal(value, outcome(undisturbed)[0][name]) for name, value in
               tensors.items())  # fmt: skip


def test_without_a_decay_more_epochs_are_the_longer_run_bit_for_bit(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = items()[0][:4], items()[1][:1]  # both lengths have the one step of warm-up
    monkeypatch.setattr(small_runs, "items", lambda: few)
    steady = plan().schedule.model_dump() | {"shape": "constant", "epochs": 1}
    more = steady | {"epochs": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    started(whole, cache, schedule=more, keeping=SELDOM).train()
    started(parts, cache, schedule=steady, keeping=SELDOM).train()
    go_on(parts, cache, schedule=more)
    assert_same(parts, whole)


def test_fewer_epochs_are_refused(cache: Path, tmp_path: Path) -> None:
    for epochs in (1, 2):
        with pytest.raises(CannotResume, match=f"got {epochs}; allowed: more than the 2"):
            with_more_epochs(plan(), [f"schedule.epochs={epochs}"], tmp_path)
    with pytest.raises(CannotResume, match="schedule.epochs: 2 -> 1"):
        check_plan(plan().override(["schedule.epochs=1"]), plan())


def test_the_command_makes_a_complete_run_longer(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    Started(PHOTOS, tmp_path, {}).write(run)
    (run / "plan.json").write_text(plan().to_json())
    (run / "overlay.png").touch()
    done = CliRunner().invoke(app, ["--resume", str(run)])
    assert done.exit_code == 0 and "complete; --epochs 3 would continue" in done.output
    begun: list[PlannedRun] = []
    monkeypatch.setattr("trainer.cli.start.start_run", begun.append)
    done = CliRunner().invoke(app, ["--resume", str(run), "--epochs", "3"])
    assert done.exit_code == 0, done.output
    write_start(begun[0])
    assert begun[0].plan == plan().override(["schedule.epochs=3"]) == Plan.read(run / "plan.json")
    assert begun[0].resumes and not is_complete(run)
    refused = CliRunner().invoke(app, ["--resume", str(run), "--epochs", "3"])
    assert refused.exit_code == 2 and "more than the 3 that" in refused.output


def scored(run: Run, scores: list[float]) -> Run:
    """The run, with evaluations that find these gIoUs."""
    left = iter(scores)
    run.evaluate = lambda title: {"giou": next(left), "ciou": 0.0, "images": 3}  # type: ignore[method-assign]
    return run


def test_a_run_ends_after_evaluations_without_a_better_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed one counts on, and one that had ended does not start again by itself."""
    monkeypatch.setattr(Run, "_train_epoch", lambda self, epoch: None)
    rule = {"schedule": plan().schedule.model_dump() | {"epochs": 9, "patience": 2}}
    first = scored(started(tmp_path, cache, **rule), [0.1, 0.5, 0.4])
    with pytest.raises(StopIteration):  # stands for the process being gone
        first.train()
    again = scored(started(tmp_path, cache, **rule), [0.5, 0.9])
    summary = again.train(resumable(tmp_path, lambda line: None))
    assert (summary["epochs"], summary["stopped_by_patience"]) == (3, 2)
    assert summary["best"]["epoch"] == 1
    assert "2 evaluations without a better gIoU" in told(summary, tmp_path)[-1]
    stays = scored(started(tmp_path, cache, **rule), [])
    assert stays.train(resumable(tmp_path, lambda line: None))["epochs"] == 3
    rule["schedule"]["epochs"] = 10  # asked for by the user: patience begins anew
    more = scored(started(tmp_path, cache, **rule), [0.4, 0.6, 0.1, 0.1])
    assert more.train(resumable(tmp_path, lambda line: None))["epochs"] == 7


def test_ended_between_two_micro_batches(
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of half an effective batch are gone, and made again."""
    real, count = Accelerator.backward, [0]

    def ending(self: Accelerator, loss: torch.Tensor) -> None:
        count[0] += 1
        if count[0] == 6:  # the second of step 3
            raise Ended
        real(self, loss)

    monkeypatch.setattr(Accelerator, "backward", ending)
    with pytest.raises(Ended):
        started(tmp_path, cache).train()
    monkeypatch.undo()
    assert json.loads((tmp_path / "last" / "state.json").read_text())["step"] == 2
    go_on(tmp_path, cache)
    assert_same(tmp_path, undisturbed)


def test_tensorboard_shows_what_the_records_hold(cache: Path, tmp_path: Path) -> None:
    """Each step once, though a kill had it done twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Ended):
        started(tmp_path, cache, ending_at("epoch 1/2", 3), keeping=Keeping(minutes=60)).train()
    go_on(tmp_path, cache)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for tag in ("loss", "giou"):
        points = [(event.step, event.value) for event in shown.Scalars(tag)]
        assert points == [(row["step"], pytest.approx(row[tag])) for row in rows if tag in row]


@pytest.mark.parametrize("kills", [2, 3])
def test_data_workers_that_are_killed_are_replaced_twice(
    kills: int, undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    """The out-of-memory killer of the system takes them first."""
    said: list[str] = []
    left = [kills]

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("epoch") and done < total and left[0]:
            left[0] -= 1
            for child in multiprocessing.active_children():
                child.kill()

    run = started(tmp_path, cache, Reporter(said.append, progress), workers=1)
    if kills > 2:
        with pytest.raises(WorkerEnded, match="--resume"):
            run.train()
        go_on(tmp_path, cache, workers=1)
    else:
        run.train()
    assert sum("data worker was ended" in line for line in said) == 2
    assert_same(tmp_path, undisturbed)


def test_with_other_levers(cache: Path, tmp_path: Path) -> None:
    """What an 8-bit optimizer keeps, and a base in NF4."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = plan().schedule.model_dump() | {"epochs": 1}
    settings = {"optimizer_state": "8bit", "quantization": "nf4", "schedule": schedule}
    started(whole, cache, keeping=SELDOM, **settings).train()
    with pytest.raises(Ended):
        started(parts, cache, ending_at("epoch 1/1", 2), **settings).train()
    go_on(parts, cache, **settings)
    assert_same(parts, whole)


def test_data_workers_change_nothing_nor_does_an_end(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(Ended):
        started(tmp_path, cache, ending_at("epoch 1/2", 2), workers=2).train()
    go_on(tmp_path, cache, workers=2)
    assert_same(tmp_path, undisturbed)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(Ended):
        started(tmp_path, cache, ending_at("epoch 1/2", 3)).train()
    file = tmp_path / "last" / "trained.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    found = resumable(tmp_path, said.append)
    assert found == tmp_path / "last-1" and "trained.safetensors is damaged" in said[0]
    started(tmp_path, cache).train(found)
    assert_same(tmp_path, undisturbed)
    # It is not kept in the place of a good one.
    assert damage(tmp_path / "damaged") == "trained.safetensors is damaged"
    assert damage(tmp_path / "last-1") == ""
    for name in ("last", "last-1"):
        (tmp_path / name / "state.json").write_text("{")
    with pytest.raises(CannotResume, match="no checkpoint of this run is whole"):
        resumable(tmp_path, said.append)


@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_features_that_go_bad_midway_are_told_plainly_and_made_anew(
    how: str, undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    """Met by a data worker, whose traceback is nobody's business."""
    own = tmp_path / "cache"
    shutil.copytree(cache, own)
    run = started(tmp_path / "run", own, workers=1)
    for entry in own.glob("sam-*/*.safetensors"):
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.write_bytes(content) if how == "flipped" else entry.unlink()
    run.evaluate = lambda title: {"giou": 0.0, "ciou": 0.0, "images": 0}  # type: ignore[method-assign]
    with pytest.raises(BadEntry) as caught:
        run.train()
    assert not multiprocessing.active_children()  # nor is one waited for later
    first, hint = str(caught.value).split("\n")
    assert first.startswith(str(own)) and "computed again" in hint
    shutil.rmtree(tmp_path / "run")
    started(tmp_path / "run", own, workers=1).train()
    assert_same(tmp_path / "run", undisturbed)


def test_a_full_disk_leaves_the_checkpoint_before(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tmp_path, cache)
    real, count = checkpoint.save_file, [0]

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        count[0] += 1
        if count[0] > 4:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(NotWritten, match=r"disk is full: \d+ MiB needed.*\n.*--resume"):
        run.train()
    assert damage(tmp_path / "last") == ""
    assert not list(tmp_path.glob(".last-*"))


def test_asked_to_stop_it_saves_and_a_second_time_it_stops_at_once(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    count = [0]

    def progress(what: str, done: int, total: int) -> None:
        count[0] += what.startswith("epoch 1")
        if count[0] == 2:
            count[0] += 1
            os.kill(os.getpid(), signal.SIGTERM)

    run = started(
        tmp_path, cache, Reporter(lambda text: None, progress), keeping=Keeping(minutes=1e9)
    )
    with pytest.raises(Interrupted, match="saved after step 2"):
        run.train()
    go_on(tmp_path, cache)
    assert_same(tmp_path, undisturbed)
    stop = loop.Stop()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_data_are_refused_item_by_item(tmp_path: Path) -> None:
    train, val = items()
    before = Started(PHOTOS, tmp_path, digests(train, val))
    check_data(before, digests(train, val))
    other = tmp_path / "other.json"
    other.write_text(train[0].json_path.read_text().replace("[", "[ ", 1))
    changed = [replace(train[0], json_path=other), *train[2:]]
    with pytest.raises(CannotResume) as caught:
        check_data(before, digests(changed, val))
    assert f"train: 1 changed or new: {train[0].name}" in str(caught.value)
    assert f"train: 1 gone: {train[1].name}" in str(caught.value)
    assert "--data-dir DIR names their folder" in str(caught.value)  # not to be put back, if moved


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *arguments], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_accelerate_gets_the_step_that_the_schedule_has_marked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else torch warns each fp16 run, on cards without bf16, of an order that is right."""
    marked = list[bool]()

    def prepared(accelerator: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        marked.append(hasattr(optimizer.step, "_wrapped_by_lr_sched"))
        return between_processes(accelerator, model, optimizer)

    monkeypatch.setattr("trainer.run.run.between_processes", prepared)
    started(tmp_path, cache)
    assert marked == [True]


@pytest.mark.slow
def test_the_command_line_goes_on_after_a_kill(tmp_path: Path, cache: Path) -> None:
    """Two processes; of one, tests/trainer/run/test_crash_points.py. --resume needs no argument."""
    path = tmp_path / "plan.json"
    settings = {"processes": 2, "accumulation": 1, "effective_batch": 2}
    path.write_text(plan(**settings, max_train_samples=6, max_val_samples=1).to_json())
    common = ("--plan", str(path), "--data-dir", str(PHOTOS), "--cache-dir", str(cache))
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    log = tmp_path / "log"
    assert together(2, lisa_train(*common, "--output-dir", whole), log) == [0, 0], log.read_text()
    often = lisa_train(*common, "--output-dir", parts, "--save-minutes", "0")
    killed = begun(2, often, log)  # that a killed launcher's processes end, test_launch shows
    records = Path(parts) / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if records.exists() and records.read_text().count('"loss"') >= 2:
            break
        time.sleep(0.02)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert [end(pid) for pid in killed] == [-signal.SIGKILL] * 2, log.read_text()
    refused = CliRunner().invoke(app, ["--resume", parts, "--set", "seed=3"])
    assert refused.exit_code == 2 and "may change" in refused.output, refused.output
    again = command("--resume", parts)
    assert again.wait(200) == 0, again.stderr and again.stderr.read()
    assert_same(Path(parts), Path(whole))
    complete = CliRunner().invoke(app, ["--resume", parts])
    assert complete.exit_code == 0 and "complete" in complete.output, complete.output


def test_a_resume_takes_what_the_refusal_of_its_plan_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Plan] = []

    def refused(plan: Plan, *_: object) -> None:
        tried.append(plan)
        if not plan.host_embeddings:
            raise DoesNotFit(f"the plan needs more\n    hint: {next_relief(plan)}")
        check_compiler()

    plan = tiny_plan()
    train = read_split(PHOTOS, "train", plan.max_train_samples)
    val = read_split(PHOTOS, "val", plan.max_val_samples)
    now = digests(train, val, (), Contents(PHOTOS))
    Started(PHOTOS, tmp_path / "cache", now).write(tmp_path)
    plan = plan.override(["cached_encoders=mask,vision"])
    (tmp_path / "plan.json").write_text(plan.to_json())
    monkeypatch.setattr("trainer.run.run.Run", refused)
    monkeypatch.setattr("trainer.model.build.find_spec", lambda name: None)
    hint: list[str] = []
    for named in ("host_embeddings=true", "compile=false", None):
        told = CliRunner().invoke(app, ["--resume", str(tmp_path), *hint])
        assert told.exit_code == 1 + (named != "host_embeddings=true"), told.output
        assert Plan.read(tmp_path / "plan.json") == tried[-1]
        hint = re.findall(r"hint: (--set) (\S+)", told.output)[0]  # as it stands there
        assert hint[1] == named or named is None
    assert tried[-1] == plan.override(["host_embeddings=true", "compile=false"])
    assert set(Started.read(tmp_path).pinned) == {"host_embeddings", "compile"}
    gone = CliRunner().invoke(app, ["--resume", str(tmp_path), "--weights", "nowhere"])
    assert gone.exit_code == 2 and "weights: no such folder" in gone.output
    assert Plan.read(tmp_path / "plan.json") == tried[-1], "and the next --resume still works"
