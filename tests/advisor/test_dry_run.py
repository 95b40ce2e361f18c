"""Trials on the GPU that is here, with a child that answers in its place."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from advisor import dry_run as dryrun
from advisor.advice import Advice
from advisor.cost.duration import REASON_SEG, Timed, with_sparing
from advisor.dry_run import measured
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.memory.forecast import Forecast
from advisor.preflight import advise
from profiles.exchange import gradient_bytes, rebuilt_bytes
from profiles.measurement import Measurement
from profiles.plan import Plan
from profiles.sizes import GIB
from profiles.tested import read_table, user_table_path

GPU = Gpu(index=0, uuid="GPU-a", name="Some card", total_bytes=8 * GIB, free_bytes=round(7.8 * GIB),
          compute_capability=(8, 9))  # fmt: skip
MACHINE = Machine(gpus=(GPU,), host_total_bytes=32 * GIB, host_available_bytes=28 * GIB)


@pytest.fixture(autouse=True)
def own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@cache
def advice() -> Advice:
    return advise(MACHINE, "7b", evidence=Evidence.shipped())


class Child:
    """What the rehearsals say, one after the other; keeps what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *verdicts: str) -> None:
        self.verdicts = list(verdicts)
        self.asked: list[tuple[Plan, list[str]]] = []
        monkeypatch.setattr(dryrun, "rehearsed", self)

    def __call__(self, plan: Plan, options: list[str], *_: object) -> Measurement:
        self.asked.append((plan, options))
        verdict = self.verdicts.pop(0)
        fits = verdict == "FITS"
        return Measurement.model_validate({
            "plan": plan, "verdict": verdict, "error": "" if fits else "backward: no more",
            "gpu": "Some card", "gpu_bytes": 8 * GIB, "text_tokens": (512, 512), "masks": 1,
            "peak_allocated_bytes": 6 * GIB, "peak_reserved_bytes": round(6.2 * GIB),
            "step_seconds": 2.5, "random_weights": True, "versions": {"torch": "2.11.0"},
        })  # fmt: skip


def test_a_plan_that_holds_becomes_a_row_and_is_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = Child(monkeypatch, "FITS")
    told: list[str] = []
    found = measured(advice(), told.append)
    assert found.plan == advice().plan and found.verdict == "FITS"
    assert (found.needs.basis, found.needs.bytes) == ("measured", round(6.2 * GIB))
    assert found.duration is not None and "trial, 2.5 s" in found.duration.basis
    ((plan, options),) = child.asked
    assert plan.weights == "random" and "--save" in options
    assert options[options.index("--text-tokens") + 1] == "512"
    (row,) = [row for row in read_table().rows if row.source == "user"]
    assert row.plan == found.plan and row.forecast_bytes == advice().needs.bytes
    again = measured(advice(), told.append)
    assert again.plan == found.plan and len(child.asked) == 1
    assert "this plan fitted here" in told[-1]
    # Advice without a trial knows it, too; of another card, or what if, it does not.
    with_rows = replace(Evidence.here(), contexts={})
    later = advise(MACHINE, "7b", evidence=with_rows)
    assert later.plan == found.plan and later.duration == found.duration
    other = MACHINE.model_copy(update={"gpus": (GPU.model_copy(update={"uuid": "GPU-c"}),)})
    said = advise(other, "7b", evidence=with_rows).duration
    assert said is not None and "trial" not in said.basis


def test_of_several_processes_one_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is of what ran; the advice adds what the processes exchange gradients through."""
    child = Child(monkeypatch, "FITS")
    two = MACHINE.model_copy(update={"gpus": (GPU, GPU.model_copy(update={"uuid": "GPU-b"}))})
    asked = advise(two, "7b", ["processes=2"], evidence=Evidence.shipped())
    found = measured(asked, print)
    assert found.plan == asked.plan and asked.plan is not None and asked.plan.processes == 2
    ((tried, _),) = child.asked
    assert (tried.processes, tried.micro_batch) == (1, asked.plan.micro_batch)
    assert tried.accumulation == asked.plan.accumulation
    (row,) = [row for row in read_table().rows if row.source == "user"]
    assert row.plan.processes == 1 and not row.covers(asked.plan)
    beside = gradient_bytes(asked.plan) + rebuilt_bytes(asked.plan)
    assert found.needs.bytes == round(6.2 * GIB) + beside and beside > 100 * 2**20
    assert "several processes" in found.needs.source
    assert row.forecast_bytes == asked.needs.bytes - beside


def test_a_plan_for_smaller_pictures_is_tried_with_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plan's largest it would run out of memory; its row stands for no larger ones."""
    child = Child(monkeypatch, "FITS")
    asked = advise(MACHINE, "qwen3-vl-4b", evidence=Evidence.shipped())
    assert asked.plan is not None
    told = Forecast(plan=asked.plan, verdict="UNKNOWN", compute_capability=(8, 9), masks=3,
                    text_tokens=512, image_tokens=408)  # fmt: skip
    found = measured(asked.model_copy(update={"forecast": told}), print)
    ((tried, _),) = child.asked
    assert tried.profile.most_image_tokens == 408 and found.plan == asked.plan
    (row,) = [row for row in read_table().rows if row.source == "user"]
    assert row.covers(asked.plan.with_pictures_of(408)) and not row.covers(asked.plan)
    assert row.data_shape is not None and row.data_shape.image_tokens == 408
    assert found.duration is not None and "trial" in found.duration.basis


@pytest.mark.parametrize("bad", ["OOM", "SPILLS"])
def test_what_does_not_hold_gives_way_to_the_ladder(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Child(monkeypatch, bad, "FITS")
    found = measured(advice(), print)
    assert found.plan == advice().ladder[0].plan and found.exit_code == 0
    assert found.duration is not None and found.plan is not None
    trial = Timed(found.plan, 512, 2.5)
    assert found.duration == with_sparing(found.plan, None, REASON_SEG, trial)
    assert all(rung.needs.bytes < advice().ladder[0].needs.bytes for rung in found.ladder)
    rows = [row.verdict for row in read_table().rows if row.source == "user"]
    assert rows == [bad, "FITS"]


def test_after_two_trials_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(monkeypatch, "OOM", "OOM")
    found = measured(advice(), print)
    assert (found.verdict, found.exit_code, found.command) == ("OOM", 1, None)
    assert "2 trials failed" in str(found.findings[-1]) and len(child.asked) == 2
    # Neither --measure nor lisa-train knows --vram, as the remedy had it.
    assert "--emulate-vram SIZE --save" in found.findings[-1].fix


def test_a_smaller_card_is_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(monkeypatch, "FITS")
    found = measured(advice(), print, cap_bytes=5 * GIB)
    assert found.duration == advice().duration, "the steps are not that card's"
    _, options = child.asked[0]
    assert float(options[options.index("--cap-gib") + 1]) == pytest.approx(5)


def test_tiny_in_the_place_of_a_large_model_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Child(monkeypatch)  # which has no answer: nothing may be asked
    small = GPU.model_copy(update={"total_bytes": 3 * GIB // 2, "free_bytes": round(1.38 * GIB)})
    tiny = advise(MACHINE.model_copy(update={"gpus": (small,)}))
    assert tiny.model == "tiny" and tiny.considered
    assert measured(tiny, print) is tiny


def test_nothing_is_tried_without_a_plan_or_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    Child(monkeypatch)
    for unmeasured in (advise(Machine()), advise(Machine(), "7b")):
        assert measured(unmeasured, print) is unmeasured
    assert not user_table_path().exists()
