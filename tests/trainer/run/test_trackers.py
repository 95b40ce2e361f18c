"""Trackers by accelerate's names get the rows of metrics.jsonl, and cannot end a training."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from pydantic import ValidationError
from typer.testing import CliRunner

from tests.conftest import PHOTOS, tiny_plan
from trainer.cli.train import app
from trainer.parallel.accelerator import make_accelerator
from trainer.run.records import Records
from trainer.run.started import Keeping, Started
from trainer.run.trackers import TENSORBOARD, TRACKERS, made_for, read_trackers

ROWS: list[dict[str, Any]] = [
    {"evaluation": "before training", "step": 0, "giou": 0.25, "images": 3},
    {"step": 1, "loss": 2.0},
]


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Stands for the package of this name: the runs that accelerate's own tracker begins in it."""
    runs: list[SimpleNamespace] = []
    module: Any = ModuleType("trackio")

    def init(project: str, name: str) -> SimpleNamespace:
        logged: list[tuple[int, dict[str, float]]] = []
        runs.append(SimpleNamespace(project=project, name=name, rows=logged, ended=False))
        runs[-1].log = lambda values, step, **_: logged.append((step, values))
        runs[-1].finish = lambda: setattr(runs[-1], "ended", True)
        module.config = runs[-1].config = {}
        module.config = SimpleNamespace(update=lambda values, **_: runs[-1].config.update(values))
        return runs[-1]

    module.init, module.__spec__ = init, ModuleSpec("trackio", None, origin="here")
    module.finish = lambda: runs[-1].finish()
    module.log = lambda values, **how: runs[-1].log(values, **how)
    monkeypatch.setitem(sys.modules, "trackio", module)
    available = [*tracking.get_available_trackers(), LoggerType.TRACKIO]
    monkeypatch.setattr(tracking, "_available_trackers", available)
    return runs


def records(folder: Path, said: list[str]) -> Records:
    accelerator = make_accelerator(tiny_plan(), made_for(folder, (TENSORBOARD, "trackio")))
    return Records(folder, tiny_plan(), accelerator, said.append)


def test_a_tracker_has_every_row_once_in_each_of_its_runs(
    trackio: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cups"
    first = records(folder, [])
    first.start()
    for row in ROWS:
        first.append(row)
    records(folder, []).start_trackers()  # as a resumed run does
    for run in trackio:
        assert (run.project, run.name) == ("lisa-preflight", "cups")
        assert run.rows == [(0, {"giou": 0.25}), (1, {"loss": 2.0})]
        assert run.config["lora.rank"] == 4 and run.config["quantization"] == "none"
    assert len(trackio) == 2
    assert list((folder / TENSORBOARD).glob("events*"))
    first.accelerator.end_training()
    assert trackio[-1].ended
    monkeypatch.setenv("WANDB_PROJECT", "kitchen")
    records(folder, []).start_trackers()
    assert trackio[-1].project == "kitchen", "as a user of wandb names it"


def test_a_tracker_that_fails_is_left_and_the_records_go_on(
    trackio: list[SimpleNamespace], tmp_path: Path
) -> None:
    said: list[str] = []
    kept = records(tmp_path, said)
    kept.start()

    def lost(values: object, **how: object) -> None:
        raise ConnectionError("server gone\nmore of it")

    trackio[0].log = lost
    for row in ROWS:
        kept.append(row)
    assert len(said) == 1 and "trackio gets no more figures: server gone; " in said[0]
    assert [json.loads(line) for line in kept.path.read_text().splitlines()] == ROWS


def test_one_that_does_not_start_is_an_error(
    trackio: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no such server")

    monkeypatch.setattr("trackio.init", refuse)
    with pytest.raises(ValueError, match="^--tracker: trackio did not start: no such server"):
        records(tmp_path, []).start()


def test_names_are_accelerates_and_a_missing_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # where it keeps its files: no package
    real = importlib.util.find_spec
    monkeypatch.setattr(  # whether or not it is installed
        "trainer.run.trackers.find_spec",
        lambda name: PathFinder.find_spec(name, [str(tmp_path)]) if name == "wandb" else real(name),
    )
    assert set(TRACKERS) <= set(map(str, tracking.LOGGER_TYPE_TO_CLASS))
    assert read_trackers("tensorboard, tensorboard") == (TENSORBOARD,)
    for wrong, told in (
        ("neptune", "got 'neptune'; allowed: tensorboard, wandb"),
        (",", "allowed: tensorboard"),
        ("tensorboard,wandb", "not installed: wandb\n    hint: pip install wandb"),
    ):
        run = tmp_path / "run"
        arguments = ["--data-dir", str(PHOTOS), "--output-dir", str(run), "--tracker", wrong]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and told in done.output, done.output
        assert not run.exists()


def test_a_run_keeps_its_trackers_and_those_of_before_have_tensorboard(tmp_path: Path) -> None:
    keeping = Keeping(trackers=("mlflow",))
    Started(PHOTOS, tmp_path, {}, keeping).write(tmp_path)
    assert Started.read(tmp_path).keeping == keeping
    document = json.loads((tmp_path / "run.json").read_text())
    with pytest.raises(ValidationError):  # no name of a package to look for, and so to import
        Started.parse(json.dumps(document | {"keeping": {"trackers": ["os.path"]}}))
    del document["keeping"]["trackers"]
    assert Started.parse(json.dumps(document)).keeping.trackers == (TENSORBOARD,)
