"""Before every file operation of a training, a whole checkpoint is there to go on from.

`benchmarks/crashes.py` kills a run at each of them and compares the end; here the run goes on, and
what a kill would leave is looked at in passing, so that no point has to be left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.run.small_runs import started
from trainer.run.checkpoint_files import read_facts
from trainer.run.resume import resumable
from trainer.run.started import Keeping

CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
watches: list[Watch] = []


class Watch:
    """The step from which a run would go on, before every operation in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps, self.looking = folder, [0], False

    def __enter__(self) -> Watch:
        watches.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        watches.remove(self)

    def look(self, event: str, values: tuple[Any, ...]) -> None:
        """A step never falls back: what was saved is lost at no point."""
        if self.looking or not self.concerns(event, values):
            return
        self.looking = True
        try:
            place = resumable(self.folder, lambda line: None)
            step = 0 if place is None else int(read_facts(place)["step"])
            assert step >= self.steps[-1], (event, values, self.steps[-1], step)
            self.steps.append(step)
        finally:
            self.looking = False

    def concerns(self, event: str, values: tuple[Any, ...]) -> bool:
        written = event == "open" and bool(values[2] & (os.O_WRONLY | os.O_RDWR))
        if not written and event not in CHANGING:
            return False
        # What rmtree removes has a name in a folder that is open.
        removed = event in ("os.remove", "os.rmdir") and values[1] >= 0
        return removed or str(values[0]).startswith(str(self.folder))


def hook(event: str, values: tuple[Any, ...]) -> None:
    for watch in watches:
        watch.look(event, values)


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    sys.addaudithook(hook)  # it stays, and does nothing where nobody watches


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_no_operation_loses_what_was_saved(kept: int, cache: Path, tmp_path: Path) -> None:
    # Without the mask decoder files are small: each is read at each of the operations.
    few = {"train": ["text_hidden_fcs", "token_rows"]}
    keeping = Keeping(steps=1, checkpoints=kept)
    run = started(tmp_path / "run", cache, keeping=keeping, **few)
    with Watch(tmp_path / "run") as watch:
        run.train()
    assert len(watch.steps) > 140 and watch.steps[-1] == 6
