"""What a run shows on a terminal: a live display, and no colour where NO_COLOR asks for none."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import trainer.cli.console as console
from benchmarks.forked import lisa_train
from benchmarks.forked import run as forked
from tests.conftest import PHOTOS, tiny_plan
from trainer.cli.console import reporter as speaking
from trainer.cli.one_process import took_line
from trainer.cli.planned_run import PlannedRun
from trainer.run.expected import NOTHING, Expected
from trainer.run.started import Started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


class Terminal:
    """A pseudo-terminal that keeps what is written to `slave`."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.seen = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.master, 65536):
                self.seen += part
        except OSError:
            pass  # Linux's way of saying that the other end is closed

    def text(self) -> str:
        """Everything written, once nobody has the terminal open."""
        self.reader.join(timeout=60)
        os.close(self.master)
        return self.seen.decode()


def test_a_run_on_a_terminal_is_shown_live(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(tiny_plan(max_train_samples=4, max_val_samples=1).to_json())
    terminal = Terminal()
    arguments = ["--plan", str(tmp_path / "plan.json"), "--data-dir", str(PHOTOS),
                 "--output-dir", str(tmp_path / "run")]  # fmt: skip

    def on_it() -> None:
        os.environ.pop("NO_COLOR", None)
        lisa_train(*arguments)()

    code = forked(on_it, Path(os.ttyname(terminal.slave)), {"TERM": "xterm"})
    os.close(terminal.slave)
    shown = terminal.text()
    assert code == 0, shown
    assert re.search(r"epoch 1/1, loss \d\.\d+", shown)
    assert COLOUR.search(shown)
    assert "before training: gIoU" in shown and "run folder" in shown
    assert re.search(r"run 0:0\d:\d\d left", shown) and re.search(r"took \d+ s", shown)


@pytest.mark.parametrize("no_colour", [True, False])
def test_no_color(monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    with os.fdopen(terminal.slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with speaking() as reporter:
            reporter.progress("sam features", 1, 3)
            reporter.line("one line")
            reporter.progress("sam features", 3, 3)
    shown = terminal.text()
    assert "one line" in shown and "3/3" in shown
    assert bool(COLOUR.search(shown)) == (not no_colour)


def test_elsewhere_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with speaking() as reporter:
        for done in range(101):
            reporter.progress("sam features", done, 100)
        reporter.line("one line")
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    # Not a line for every picture: the last, and one now and then.
    assert lines[-2:] == ["sam features: 100/100", "one line"] and len(lines) < 5


def test_plain_lines_tell_the_time_left_of_each_phase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    plain = console.LineProgress()
    for what, done, total, seconds in (
        ("sam features", 0, 4, 30), ("sam features", 1, 4, 3), ("sam features", 4, 4, 20),
        ("epoch 1/2, loss 0.500", 11, 91, 40), ("epoch 1/2, loss 0.400", 21, 91, 0),
    ):  # fmt: skip
        plain(what, done, total)
        now += seconds
    assert capsys.readouterr().err.splitlines() == [
        "sam features: 0/4", "sam features: 1/4, 0:01:30 left", "sam features: 4/4",
        "epoch 1/2, loss 0.500: 11/91", "epoch 1/2, loss 0.400: 21/91, 0:04:40 left",
    ]  # fmt: skip


def test_plain_lines_tell_the_time_left_of_the_run_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with speaking() as reporter:
        reporter.progress("sam features", 4, 4)
        reporter.left(3723.4)
        reporter.progress("epoch 1/2, loss 0.500", 3, 3)
        reporter.left(None)
        reporter.progress("evaluating", 6, 6)
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "sam features: 4/4", "epoch 1/2, loss 0.500: 3/3, run 1:02:03 left", "evaluating: 6/6",
    ]  # fmt: skip


def test_a_run_that_took_its_time_is_held_against_the_forecast(tmp_path: Path) -> None:
    started = Started(tmp_path, tmp_path, {})
    run = PlannedRun(tiny_plan(), tmp_path, started)
    assert run.expected == NOTHING
    plan = tiny_plan().model_dump(mode="json")
    told = {"plan": plan, "duration": {"seconds": 1381.5}, "needs": {"bytes": 2**30}}
    (tmp_path / "advice.json").write_text(json.dumps(told))
    assert run.expected == Expected(1381.5, 2**30), "as a started process reads it"
    assert replace(run, resumes=True).expected == Expected(None, 2**30)
    assert replace(run, plan=tiny_plan(seed=1)).expected == NOTHING, "another plan's"
    assert took_line(1260, run.expected.seconds, False) == "took 21 min; 23 min were forecast"
    odd: tuple[object, ...] = (told | {"duration": None, "needs": None}, [], {"plan": 1},
                               told | {"duration": {"seconds": "x"}, "needs": {}})  # fmt: skip
    for damaged in (*map(json.dumps, odd), "{"):
        (tmp_path / "advice.json").write_text(damaged)
        assert run.expected == NOTHING
    assert took_line(75, None, False) == "took 75 s"
    assert took_line(75, None, True) == "took 75 s since it was resumed"
