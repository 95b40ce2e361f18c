"""Trainings are processes of their own: they are found again, stopped and resumed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio import processes as studio_processes
from studio import training as studio_training
from studio.app import create_app
from studio.places import Places
from studio.processes import Processes
from studio.training import Training, arguments
from tests.studio.conftest import Page

# In the place of lisa-train: locks its run folder as one does, and ends at Ctrl-C in words.
TRAINER = """
import sys, time
from pathlib import Path
from profiles.files import held
folder = next(Path(one.partition("=")[2]) for one in sys.argv[1:]
              if one.startswith(("--output-dir=", "--resume=")))
with held(folder):
    (folder / "run.json").write_text("{}")
    (folder / "last").mkdir(exist_ok=True)
    print("training", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit("saved after step 3")
"""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(module: str, *rest: str) -> list[str]:
        assert module == "trainer.cli"
        return [sys.executable, "-c", TRAINER, *rest]

    monkeypatch.setattr(studio_processes, "python_module", command)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.usefixtures("trainer")
def test_a_training_survives_the_page_and_is_stopped_and_resumed(page: Page) -> None:
    training = {"name": "first", "data": "work/photos", "wanted": {"model": "tiny"}}
    run = page.ask("train", **training)["run"]
    assert run == "work/runs/first"
    assert "taken" in page.error("train", **training)
    assert page.ask("run", run=run)["state"] == "starting"  # it has no folder yet, or an empty one

    def state(one: Page = page) -> str:
        return str(one.ask("run", run=run)["state"])

    until(lambda: (page.home / "runs" / "first" / "run.json").exists())
    assert state() == "starting"  # no step is recorded yet
    assert "is training in it" in page.error("resume", run=run)
    with TestClient(create_app([page.home]), base_url=page.client.base_url) as later:
        again = Page(later, page.home)  # the page was closed and is opened again
        assert [one["run"] for one in again.ask("runs")["runs"]] == [run] and state(
            again
        ) == "starting"
        assert "stop" in again.ask("stop", run=run)["words"]
    until(lambda: state() == "stopped")
    assert page.ask("run", run=run)["words"] == "saved after step 3"
    assert "no process" in page.error("stop", run=run)
    assert page.ask("resume", run=run) == {"run": run}
    until(lambda: state() == "starting" and page.ask("run", run=run)["log"] == ["training"])
    page.ask("stop", run=run)
    until(lambda: state() == "stopped")


def test_on_windows_it_is_said_that_nothing_is_saved(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    (page.home / "runs" / "first").mkdir(parents=True)
    ended: list[int] = []
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(os, "kill", lambda pid, _: ended.append(pid))
    monkeypatch.setattr(studio_training, "pid_of", lambda _: 12345)
    words = page.ask("stop", run="work/runs/first")["words"]
    assert "its last checkpoint" in words and ended == [12345]


def test_the_command_is_an_ordinary_one(home: Path) -> None:
    places, wanted = Places([home]), {"model": "tiny", "settings": ["lora.rank=4"]}
    training = Training.model_validate(
        {"name": "a", "data": "work/photos", "wanted": wanted, "epochs": 2}
    )
    assert arguments(training, home / "runs" / "a", places) == [
        f"--data-dir={home}/photos", f"--output-dir={home}/runs/a", "--model=tiny",
        "--prefer=usual", "--set=lora.rank=4", "--set=schedule.epochs=2",
    ]  # fmt: skip
    (home / "plan.json").write_text("{}")
    saved = training.model_copy(update={"plan": "work/plan.json", "epochs": None})
    assert arguments(saved, home / "runs" / "a", places)[2:] == [f"--plan={home}/plan.json"]
    elsewhere = training.model_copy(
        update={"wanted": training.wanted.model_copy(update={"card": "8GiB"})}
    )
    with pytest.raises(ValueError, match="another card"):
        arguments(elsewhere, home / "runs" / "a", places)


def test_what_cannot_start_is_refused(page: Page) -> None:
    for name in ("../a", "", ".a", "a/b"):
        assert "allowed" in page.error("train", name=name, data="work/photos")
    assert "does not see" in page.error("train", name="a", data="/etc")
    assert "does not see" in page.error("train", name="a", data="work/photos", plan="/etc/passwd")
    assert "is not there" in page.error("resume", run="work/runs/none")
    assert not (page.home / "runs").exists() and not (page.home / ".lisa-studio").exists()


def test_a_tilde_in_a_folder_s_name_divides_nothing(home: Path) -> None:
    processes = Processes(Places([home]))
    processes.folder.mkdir()
    targets = [home / "runs" / name for name in ("a", "a~b", "~", "50%7E")]
    targets += [home / "runs~a" / "b"]
    for target in targets:
        processes._path(target, "json").write_text("{}")
    assert sorted(processes.started()) == sorted(targets)


@pytest.mark.usefixtures("trainer")
def test_of_two_starts_at_once_one_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, target = Processes(Places([home])), home / "runs" / "a"
    running = Processes.running

    def slowly(self: Processes, folder: Path) -> bool:
        found = running(self, folder)
        time.sleep(0.1)
        return found

    def start(_: int) -> str:
        try:
            processes.start(target, [f"--output-dir={target}"])
        except ValueError as error:
            return str(error)
        return "started"

    monkeypatch.setattr(Processes, "running", slowly)
    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(start, range(2)))
    for child in processes.children:
        child.kill()
        child.wait()
    assert told[1] == "started" and "at work on it already" in told[0]


def test_another_process_with_that_number_is_not_taken_for_it(home: Path) -> None:
    processes, target = Processes(Places([home])), home / "runs" / "old"
    processes.folder.mkdir()
    record = {"pid": 1, "began": 12.5, "arguments": []}  # of before a reboot
    (processes.folder / "runs~old.json").write_text(json.dumps(record))
    assert processes.started() == [target] and not processes.running(target)
    (processes.folder / "runs~old.json").write_text("{}")
    assert not processes.running(target)
