"""Two machines, as network namespaces: one process's losses, and the end of one when the other is
lost. Needs root; without it, what a process does when it has lost another is still tested."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
import torch.distributed as dist

from benchmarks import forked
from tests.conftest import ROOT, tiny_plan
from tests.group import together
from tests.test_docs import script
from trainer.parallel import lost
from trainer.parallel.accelerator import make_accelerator, wait_for_all
from trainer.parallel.ranks import Ranks


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return script("benchmarks/two_machines.py", monkeypatch)


@pytest.mark.launcher
def test_two_machines_train_as_one_process_and_lose_nothing_with_one_of_them(
    two_machines: ModuleType, tmp_path: Path
) -> None:
    if why := two_machines.why_not():
        pytest.skip(why)
    alone = two_machines.train_alone(tmp_path)
    two_machines.write_plan_of_two(tmp_path)
    with two_machines.two_hosts(tmp_path) as hosts:
        row = two_machines.lose(hosts, 0, "killed", "run", after=2)
        two_machines.together(hosts, "--resume", "run")
        run = hosts[0].home / "run"
    assert (row["code"], row["left"]) == (1, 0) and row["seconds"] < 10 and row["steps"] < 4
    assert "another process of this run has ended" in row["said"][0]
    assert "lisa-train --resume" in row["said"][1]
    assert len(alone) == 4
    assert two_machines.losses(run) == pytest.approx(alone, rel=1e-4)


def silent_second(folder: Path) -> None:
    """The second process answers once and then never again; the first says how it noticed."""
    plan = tiny_plan(processes=2, accumulation=1, micro_batch=1)
    accelerator = make_accelerator(plan, None)
    group = dist.distributed_c10d._get_default_group()
    backend = group._get_backend(torch.device("cpu"))
    assert backend.options._timeout == lost.STARTING
    lost.wait_no_longer()
    wait_for_all(accelerator)
    (neighbour,) = Ranks.here().neighbours()
    assert neighbour != os.getpid() and psutil.Process(neighbour).ppid() == os.getppid()
    if accelerator.process_index == 1:
        while not (folder / "noticed").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        accelerator.reduce(torch.ones(1))
    except Exception as error:
        assert lost.is_lost(error), error
        (folder / "noticed").write_text(lost.what_is_lost(error))
        os._exit(0)


def test_a_process_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting lasts as long as LISA_GROUP_TIMEOUT says, once all processes are in step."""
    monkeypatch.setenv(lost.VARIABLE, "1")
    monkeypatch.setattr(forked, "PATIENCE", 60)
    log = tmp_path / "log"
    assert together(2, partial(silent_second, tmp_path), log) == [0, -9], log.read_text()
    said = (tmp_path / "noticed").read_text()
    assert said == "another process of this run did not answer for 1 s"


@pytest.mark.parametrize("text", ["soon", "0", "-1", "1.5"])
def test_the_timeout_is_a_number_of_seconds(text: str) -> None:
    with pytest.raises(ValueError, match=lost.VARIABLE):
        lost.silence({lost.VARIABLE: text})
    assert lost.silence({}).seconds == lost.SECONDS
