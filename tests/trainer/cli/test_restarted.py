"""A launcher that starts its processes again: the run goes on, with every machine's reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist
import typer
from typer.testing import CliRunner

from profiles.plan import Plan
from profiles.shortage import Shortage
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.parallel.test_launch import LAUNCHED
from trainer.cli import ranks as cli_ranks
from trainer.cli import start as start_cli
from trainer.cli import train as train_cli
from trainer.cli.planned_run import PlannedRun, write_start
from trainer.cli.restarted import begun_before, launcher_name
from trainer.parallel import launch
from trainer.parallel.ranks import Ranks
from trainer.run import folder as folders
from trainer.run import shortages as recovery
from trainer.run.started import Started


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LAUNCHED | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)


def begin(folder: Path, launcher: str) -> Path:
    folder.mkdir(parents=True)
    Started(PHOTOS, folder / "cache", {}, launcher=launcher).write(folder)
    return folder


def test_the_run_that_this_launcher_began_is_found(
    launched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name that the user gave, or under the default one with a number."""
    mine = launcher_name()
    assert str(os.getppid()) in mine
    assert begun_before(tmp_path / "new") is None
    assert begun_before(begin(tmp_path / "given", mine)) == tmp_path / "given"
    assert begun_before(begin(tmp_path / "others", "7 on another machine")) is None
    latest = tmp_path / "latest"
    for module in (folders, __import__("trainer.cli.restarted").cli.restarted):
        monkeypatch.setattr(module, "LATEST", latest)
    begin(latest, "an earlier launcher")
    assert begun_before(latest) is None
    begin(tmp_path / "latest-2", mine)
    assert begun_before(latest) == tmp_path / "latest-2"


def test_without_a_launcher_no_run_is_taken_for_begun(tmp_path: Path) -> None:
    """Runs of earlier versions, and of lisa-train alone, name no launcher."""
    assert launcher_name() == ""
    assert begun_before(begin(tmp_path / "run", "")) is None


def test_the_same_command_resumes(
    launched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, resumed = begin(tmp_path / "run", launcher_name()), []
    monkeypatch.setattr(train_cli, "resume_run", lambda *given: resumed.append(given[0]))
    monkeypatch.setattr(train_cli, "work_offline", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "1")  # nobody to talk to
    with pytest.raises(SystemExit) as end:
        train_cli.app(["--plan", "x", "--data-dir", str(PHOTOS), "--output-dir", str(run)])
    assert (end.value.code, resumed) == (0, [run])


def short(step: int) -> Shortage:
    return Shortage(plan=tiny_plan(), phase="training", step=step, error="out of memory", gpu=None,
                    allocated_bytes=None, reserved_bytes=None, limit_bytes=None,
                    outside_bytes=None, limit_before_bytes=None, outside_before_bytes=None,
                    components={}, versions={})  # fmt: skip


def test_reports_of_other_machines_are_taken_in_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 shares the disk; rank 2 is elsewhere and ran out of memory in the fourth step."""
    store = dist.HashStore()
    for rank, steps in enumerate([[], [1], [1, 3]]):
        reports = [short(step).model_dump_json() for step in steps]
        Ranks(rank, 3, store=store).say(cli_ranks.SHORTAGES, json.dumps(reports))
    place = recovery.new_place(tmp_path)
    (place / recovery.REPORT).write_text(short(1).model_dump_json())
    monkeypatch.setattr(Ranks, "here", lambda: Ranks(0, 3, store=store))
    for _ in range(2):
        cli_ranks.collect_shortages(tmp_path)
        assert [one.step for one in recovery.shortages(tmp_path).values()] == [1, 3]
    assert recovery.open_report(tmp_path) == tmp_path / "out-of-memory" / "002"


def test_a_killed_process_is_named_with_what_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "start_processes", lambda *_: -9)
    plan = tiny_plan(processes=2, effective_batch=4, accumulation=1)
    with pytest.raises(typer.Exit) as end:
        start_cli.start_run(PlannedRun(plan, tmp_path, Started(PHOTOS, tmp_path / "c", {})))
    assert end.value.exit_code == 1
    said = capsys.readouterr().err
    assert "a process was ended by SIGKILL" in said and f"lisa-train --resume {tmp_path}" in said


def test_a_run_is_resumed_with_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch of a step stays; the processes that are started read the plan in the run folder."""
    run, started = begin(tmp_path / "run", ""), []
    plan = tiny_plan(micro_batch=1, effective_batch=6, accumulation=6)
    (run / "plan.json").write_text(plan.to_json())
    monkeypatch.setattr(start_cli, "start_run", started.append)
    start_cli.resume_run(run, None, None, {}, ["processes=3"])
    write_start(started[0])
    now = Plan.read(run / "plan.json")
    assert started[0].plan == now and started[0].resumes
    assert (now.processes, now.accumulation, now.effective_batch) == (3, 2, 6)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("words", [["evaluate", "run"], ["--check-data", "data"]])
def test_what_one_process_does_is_refused_to_several(
    words: list[str], rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would score the whole split and write the same files; rank 0 says so."""
    for name, value in (LAUNCHED | {"RANK": rank, "LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(train_cli.app, words)
    assert done.exit_code == 2
    assert ("runs in one process, and a launcher started" in done.stderr) == (rank == "0")
