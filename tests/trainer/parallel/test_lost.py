"""What decides something never comes from a broken group: who waits for a card looks after others,
and what is not computed on the card goes through gloo, which raises errors."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from advisor.rehearsal import in_child
from profiles.environment import RANKS
from tests.conftest import tiny_plan
from trainer.parallel import accelerator as group
from trainer.parallel import lost
from trainer.parallel.lost import (
    VARIABLE,
    CardWaits,
    is_lost,
    is_silence,
    wait_for_card,
    what_is_lost,
)
from trainer.parallel.ranks import Ranks
from trainer.run.state import State
from trainer.step import total_of


class Clock:
    """Time passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(lost, "time", clock := Clock())
    return clock


def test_a_card_that_waits_for_a_silent_process_is_given_up(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(CardWaits) as caught:
        wait_for_card(lambda: False, [os.getpid()])
    assert is_lost(caught.value) and is_silence(caught.value) and 1 < clock.now < 1.01
    assert what_is_lost(caught.value) == "another process of this run did not answer for 1 s"


def test_a_card_that_waits_for_a_process_that_has_ended_is_given_up_at_once(
    clock: Clock,
) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    ended.wait()
    with pytest.raises(CardWaits) as caught:
        wait_for_card(lambda: False, [os.getpid(), ended.pid])
    assert clock.now == 0 and not is_silence(caught.value)
    assert what_is_lost(caught.value) == "another process of this run has ended"


def test_a_card_is_waited_for_until_it_is_done() -> None:
    looks = iter([False] * 20 + [True])
    wait_for_card(lambda: next(looks), [os.getpid()])
    assert next(looks, None) is None


def test_nothing_is_saved_from_a_card_that_waits() -> None:
    """Its tensors come after the work that never ends; a lost process alone is no reason."""
    saved: list[dict[str, bool]] = []
    state: Any = SimpleNamespace(
        optimizer=SimpleNamespace(zero_grad=lambda set_to_none: None),
        save=lambda **how: saved.append(how),
    )
    for error in (CardWaits("timed out"), dist.DistNetworkError("gone")):
        with pytest.raises(type(error)), State.saved_on_failure(state):
            raise error
    assert saved == [{"together": False}]


def test_the_totals_of_a_step_do_not_go_over_the_card() -> None:
    def reduce(tensor: torch.Tensor, _: str) -> torch.Tensor:
        assert tensor.device.type == "cpu"
        return 2 * tensor

    here: Any = SimpleNamespace(num_processes=2, device=torch.device("cuda"), reduce=reduce)
    batch: Any = SimpleNamespace(answers=[0, 1, 2], targets=[0])
    totals = total_of([batch], here)
    assert (totals.tokens, totals.masks) == (6, 2)


@pytest.mark.parametrize(("device", "backends"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")])
def test_the_group_of_a_launch(device: str, backends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's launchers let NCCL end the kernels of a broken group, which leave garbage."""
    founded: list[Any] = []
    store = dist.HashStore()
    monkeypatch.setattr(Ranks, "here", lambda: Ranks(1, 2, group_store=store))
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **named: founded.append((a, named)))
    names = [f"TORCH_NCCL_{name}" for name in ("ASYNC_ERROR_HANDLING", "DUMP_ON_TIMEOUT",
                                               "WAIT_TIMEOUT_DUMP_MILSEC")]  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(names[2])
    group._found_group(tiny_plan(device=device, processes=2, micro_batch=1, accumulation=1))
    (((named,), rest),) = founded
    assert named == backends and (rest["rank"], rest["world_size"]) == (1, 2)
    on_card = device == "cuda"
    assert [os.environ.get(name) for name in names] == (
        ["3", "1", "1000"] if on_card else ["1", "1", None]
    )


def test_a_launch_of_one_process_has_such_a_group_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would found one of NCCL alone, in which no process can wait for all."""
    founded: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **named: founded.append((a, named)))
    monkeypatch.setattr(group, "set_up_nccl", lambda environment: None)
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}  # fmt: skip
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    group._found_group(tiny_plan(device="cuda"))
    (((named,), rest),) = founded
    assert named == "cpu:gloo,cuda:nccl" and (rest["rank"], rest["world_size"]) == (0, 1)
    assert Ranks.here().neighbours() == []


def test_a_rehearsal_is_no_rank_of_the_launch_that_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for the others: rank 0 alone forecasts, after out of memory."""
    for name in RANKS:
        monkeypatch.setenv(name, "1")
    done = in_child([sys.executable, "-S", "-c", "import os; print(*os.environ)"], 60, {"OWN": ""})
    names = done.stdout.split()
    assert "OWN" in names and "PATH" in names and not {*RANKS} & {*names}
