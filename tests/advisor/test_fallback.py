"""The plan after an out-of-memory error, on a card that a stand-in for NVML describes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from advisor import fallback as module
from advisor.fallback import Fallback, NothingSmaller, fallback
from advisor.machine.gpu import Gpu, Machine
from advisor.memory.card import Card
from advisor.memory.forecast import forecast
from advisor.memory.worst_sample import Worst
from profiles.levers import MAY_CHANGE_ON_FALLBACK
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.shortage import Shortage
from profiles.sizes import GIB
from profiles.tested import read_table
from tests.conftest import PHOTOS

PLAN = Plan.parse({
    "model": "7b", "device": "cuda", "quantization": "nf4", "effective_batch": 20,
    "micro_batch": 4, "accumulation": 5, "checkpointed_layers": "all",
})  # fmt: skip


def machine(free_gib: float, others: int = 0) -> Machine:
    card = Gpu(index=0, uuid="GPU-a", name="Some card", total_bytes=12 * GIB,
               free_bytes=round(free_gib * GIB), compute_capability=(8, 9),
               other_processes=others, other_process_bytes=others * GIB)  # fmt: skip
    return Machine(gpus=(card,), host_total_bytes=64 * GIB, host_available_bytes=60 * GIB)


def short(limit_gib: float, plan: Plan = PLAN, others_gib: float = 0.0, step: int = 7) -> Shortage:
    return Shortage(
        plan=plan, phase="training", step=step, error="CUDA out of memory", gpu="Some card",
        allocated_bytes=round((limit_gib - 0.3) * GIB), reserved_bytes=round(limit_gib * GIB),
        limit_bytes=round(limit_gib * GIB),
        limit_before_bytes=round((limit_gib + others_gib) * GIB),
        outside_before_bytes=GIB, outside_bytes=round((1 + others_gib) * GIB),
        components={"frozen weights": 4 * GIB, "transient": GIB}, versions={"torch": "2.11.0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def apart(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, rehearsals_here: None
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))


@pytest.fixture
def pool_gib(apart: None) -> float:
    """What the plan is forecast to take, on the photographs."""
    return _pool_gib()


@cache
def _pool_gib() -> float:
    found = forecast(PLAN, Worst(data=PHOTOS), Card(compute_capability=(8, 9)))
    return found.tier("pool").bytes / GIB


def ask(tried: list[Shortage], now: Machine, pinned: tuple[str, ...] = (), wait: float = 0.0,
        later: Machine | None = None, prefer: Preference = "usual",
        ) -> tuple[Fallback, list[str]]:  # fmt: skip
    said: list[str] = []
    seen = iter([now, *[later or now] * 99])
    found = fallback(tried, pinned, PHOTOS, wait, said.append, lambda: next(seen), prefer)
    return found, said


@pytest.mark.slow
def test_a_plan_that_took_more_than_there_was_gives_way_to_a_smaller_one(pool_gib: float) -> None:
    found, _ = ask([short(pool_gib - 0.2)], machine(11.5))
    assert found.forecast is not None
    changed = {
        name for name in Plan.model_fields if getattr(found.plan, name) != getattr(PLAN, name)
    }
    assert changed and changed <= MAY_CHANGE_ON_FALLBACK - {"quantization"}
    assert found.plan.effective_batch == 20
    assert f"{pool_gib:.2f} GiB were forecast" in found.because
    record = found.record()
    assert record["forecast"]["components"]["frozen weights"] > 3 * GIB
    assert record["taken"]["components"]["frozen weights"] == 4 * GIB
    (row,) = [row for row in read_table().rows if row.source == "user"]
    assert (row.verdict, row.plan, row.cap_bytes) == (
        "OOM",
        PLAN,
        short(pool_gib - 0.2).limit_bytes,
    )
    # A run that was planned with another preference keeps it.
    roomy, _ = ask([short(pool_gib - 0.2)], machine(11.5), prefer="headroom")
    assert roomy.plan.checkpointed_layers > found.plan.checkpointed_layers
    # Where that one fails as well, the next is smaller again.
    again, _ = ask([short(pool_gib - 0.2), short(pool_gib - 1, found.plan)], machine(11.5))
    assert again.plan != found.plan


@pytest.mark.slow
def test_a_lower_limit_is_kept_and_pinned_settings_stay(pool_gib: float) -> None:
    """Less than half of what there was: only then are the base weights rounded further."""
    plan = PLAN.override(["quantization=int8", "micro_batch=2"])
    found, _ = ask([short(4.6, plan)], machine(11.5), ("micro_batch",))
    assert found.plan.micro_batch == 2
    assert found.plan.quantization == "nf4" or found.plan.host_layers > 16
    with pytest.raises(NothingSmaller, match="micro-batch 2.*training after step 7, 1.00 GiB"):
        ask([short(1.0, plan)], machine(11.5))


@pytest.mark.slow
def test_other_processes_are_told_apart_and_waited_for(
    pool_gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = short(pool_gib - 2, others_gib=3.0)
    smaller, said = ask([taken], machine(pool_gib - 1.0, others=2))
    assert said[0].startswith("other processes took 3.00 GiB of Some card (2 on it now, with 2.00")
    assert "other processes have the rest" in smaller.because and smaller.plan != PLAN
    # Where the memory is free again by the time it is looked for, nothing changes.
    same, _ = ask([taken], machine(11.5))
    assert same.plan == PLAN and same.because == "the memory is free again"
    naps: list[float] = []
    monkeypatch.setattr(module.time, "sleep", naps.append)
    same, said = ask([taken], machine(pool_gib - 1.0), wait=5, later=machine(11.5))
    assert same.plan == PLAN and len(naps) == 1 and said[1].startswith("waiting for ")
    # Three times at the same step, with nothing gained: no more of that.
    other, _ = ask([taken] * 3, machine(11.5))
    assert other.plan != PLAN


def test_what_nccl_takes_was_not_taken_by_others() -> None:
    """0.76 GiB a card: each rank that ran out of memory tried the same plan again."""
    two = PLAN.override(["processes=2", "micro_batch=5"])
    for others_gib, plan, others in ((0.9, PLAN, True), (0.9, two, False), (2.0, two, True)):
        assert module.taken_by_others(short(8.0, plan, others_gib), None) == others


@pytest.mark.slow
def test_of_several_processes_the_next_plan_is_forecast_too(pool_gib: float) -> None:
    """On the card with the least memory; no process gets more samples than it had."""
    plan = PLAN.override(["processes=2", "micro_batch=5"])
    one = machine(11.5)
    two = one.model_copy(update={"gpus": (machine(11.9).gpus[0], *one.gpus)})
    found, _ = ask([short(pool_gib, plan)], two)
    assert found.forecast is not None and found.forecast.tiers
    assert (found.plan.processes, found.plan.effective_batch) == (2, 20)
    assert found.plan.micro_batch <= 5 and "this one takes" in found.because
