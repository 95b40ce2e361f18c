"""How many threads a CPU run takes: those that it may keep busy, and it says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from profiles.environment import at_home, threads_for, usable_cores
from tests.conftest import tiny_plan
from trainer.process import use_threads


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("200000 100000", 2),
                                              ("50000 100000", 1), ("nonsense", 8)])  # fmt: skip
def test_cores_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == cores
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == 3


def test_two_threads_do_not_share_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    assert usable_cores(tmp_path) == 4


def test_processes_and_their_workers_share_the_cores() -> None:
    assert [threads_for(8, n, w) for n, w in ((1, 0), (2, 0), (2, 1), (16, 0), (1, 9))] == [
        8, 4, 3, 1, 1,
    ]  # fmt: skip


def test_a_run_says_how_many_threads_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    said: list[str] = []
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("profiles.environment.usable_cores", lambda: 4)
        use_threads(tiny_plan(workers=1), said.append)
        assert torch.get_num_threads() == 3 and said[-1].startswith("CPU threads: 3 ")
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        use_threads(tiny_plan(), said.append)
        assert torch.get_num_threads() == 3  # what the user said is not overruled
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_do_not_spin_unless_asked_to() -> None:
    assert at_home({})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert at_home({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
