"""The advice for faked machines: what is chosen, and what each choice says for itself."""

import datetime
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from advisor.advice import Advice
from advisor.choice import rank as choose
from advisor.machine.budget import Budget
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.probe import probe
from advisor.machine.target import Target
from advisor.memory.forecast import Forecast, Tier
from advisor.memory.live import live_forecast
from advisor.memory.worst_sample import Worst
from advisor.preflight import advise
from advisor.rehearsal import RehearsalFailed
from advisor.report import row_reasons
from advisor.report.text import render_svg
from advisor.tiny import tiny_cpu_plan
from profiles import grid, tested
from profiles.findings import PlanError
from profiles.gpus import find_gpu
from profiles.grid import estimate, nearest
from profiles.measurement import DataCounts
from profiles.models import DEFAULT_MODELS
from profiles.plan import Plan
from profiles.sizes import GIB as BUDGET_GIB
from profiles.tested import DataShape, Table, TestedRow, read_table
from tests.advisor import fake_nvml
from tests.advisor.fake_nvml import GIB, Card, install

TABLE = read_table(Path("/nonexistent/tested.jsonl"))
NO_GPU = Machine(platform="linux", cpu_model="Some CPU")


def _machine(free_gib=7.8, total_gib=8.0, capability=(8, 9), platform="linux", **facts) -> Machine:
    gpu = Gpu(
        index=0,
        uuid="GPU-a",
        name="Some card",
        total_bytes=round(total_gib * GIB),
        free_bytes=round(free_gib * GIB),
        compute_capability=capability,
        **facts,
    )
    host = {"host_total_bytes": 32 * GIB, "host_available_bytes": 28 * GIB}
    return Machine(gpus=(gpu,), platform=platform, **host)


def _advise(
    machine=NO_GPU, model=None, overrides=(), vram_gib=None, table=TABLE, target=None, **rest
) -> Advice:
    if vram_gib is not None:
        target = Target(vram_bytes=round(vram_gib * GIB))
    return advise(machine, model, overrides, target, evidence=Evidence(table), **rest)


@pytest.fixture
def other_corners(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For what a test changes in the grid: estimates from before and after are not the same."""
    grid.estimate.cache_clear()
    yield monkeypatch
    grid.estimate.cache_clear()


def _reason(advice: Advice, setting: str):
    (reason,) = [reason for reason in advice.reasons if reason.setting == setting]
    return reason


def test_gib_is_gib():
    assert BUDGET_GIB == GIB == 1024**3


def test_without_a_gpu_tiny_trains_on_the_cpu():
    advice = _advise()
    assert (advice.verdict, advice.exit_code) == ("FITS", 0)
    assert advice.plan == tiny_cpu_plan()
    assert advice.command == "lisa-train --auto --model tiny --data-dir DIR"
    assert advice.environment == {}
    notes = "\n".join(map(str, advice.findings))
    assert "7b trains from a 4 GiB card" in notes and "13b trains from a 6 GiB card" in notes


@pytest.mark.parametrize("model", ["7b", "13b", "7b-v1"])
def test_a_large_model_without_a_gpu_cannot_be_decided(model):
    advice = _advise(model=model)
    assert (advice.verdict, advice.exit_code, advice.plan) == ("UNKNOWN", 3, None)
    assert advice.command is None
    assert f"lisa-advise --model {model} --vram 8GiB" in str(advice.findings[-1])


def test_a_lost_gpu_is_never_chosen(monkeypatch):
    install(monkeypatch, fake_nvml.lost_card())
    assert advise(probe({}), evidence=Evidence(TABLE)).model == "tiny"
    install(monkeypatch, Card(uuid="GPU-a"), fake_nvml.lost_card(), Card(uuid="GPU-c"))
    advice = advise(probe({}), evidence=Evidence(TABLE))
    assert advice.gpu is not None and advice.gpu.lost is None


@pytest.mark.parametrize(
    ("vram_gib", "model", "storage"),
    [(4, "7b", "int8"), (6, "7b", "nf4"), (8, "7b", "nf4"), (16, "7b", "int8"),
     (24, "7b", "none"), (8, "13b", "nf4"), (48, "13b", "none"), (8, "7b-v1", "nf4")],
)  # fmt: skip
def test_what_a_card_of_this_size_gets(vram_gib, model, storage):
    advice = _advise(vram_gib=vram_gib, model=model)
    assert (advice.verdict, advice.plan.quantization) == ("FITS", storage)
    assert advice.plan.model == model
    assert advice.plan.effective_batch == 20, "the recipe is the user's"
    assert advice.needs.bytes <= advice.budget.usable.bytes
    assert advice.host_bytes <= advice.budget.host.bytes
    assert advice.text_tokens == advice.plan.tokens.max_text_tokens
    assert advice.largest_micro_batch >= advice.plan.micro_batch
    found = estimate(advice.plan, 512)
    assert found is not None and advice.needs.bytes <= found.pool_bytes
    streams = (vram_gib, model) in {(4, "7b"), (8, "13b")}
    assert (advice.plan.host_layers > 0) == streams, "streaming is for what else cannot run"


def test_too_small_is_a_clear_no():
    advice = _advise(vram_gib=2, model="7b")
    assert (advice.verdict, advice.exit_code, advice.command) == ("OOM", 1, None)
    assert advice.needs.bytes == min(c.needs.bytes for c in advice.considered)
    assert "7b trains from a 4 GiB card" in str(advice.findings[-1])


def _quality(advice: Advice) -> tuple[int, float]:
    storage = ("nf4", "int8", "none").index(advice.plan.quantization)
    return storage, advice.speed.samples_per_second


def test_spare_memory_buys_speed():
    """At least 85 % of the budget is used wherever a plan that takes more would be better."""
    for model in ("7b", "13b"):
        for size in (6, 8, 10, 12, 16, 24):
            advice = _advise(vram_gib=size, model=model)
            share = advice.needs.bytes / advice.budget.usable.bytes
            streams = advice.plan.host_layers > 0  # more layers on the card are no faster then
            assert share >= 0.85 or advice.better is None or streams, (model, size, share)


def test_the_ladder_goes_down_by_at_least_three_rungs():
    for size, model in ((8, "7b"), (24, "7b"), (80, "7b"), (12, "13b")):
        advice = _advise(vram_gib=size, model=model)
        sizes = [advice.needs.bytes, *(rung.needs.bytes for rung in advice.ladder)]
        assert len(sizes) >= 4
        assert all(b <= 0.93 * a for a, b in zip(sizes, sizes[1:], strict=False))
        for rung in advice.ladder:
            assert rung.plan.effective_batch == advice.plan.effective_batch
            assert rung.plan.train == advice.plan.train and rung.plan.lora == advice.plan.lora


def test_a_better_plan_names_the_card_that_it_needs():
    advice = _advise(vram_gib=8, model="13b")
    assert advice.better.needs.bytes > advice.budget.usable.bytes
    assert advice.better_card_gib >= 10
    larger = _advise(vram_gib=advice.better_card_gib, model="13b")
    moved = larger.plan.host_layers < advice.plan.host_layers
    assert moved or _quality(larger) >= _quality(advice)


def test_host_memory_is_a_limit_too():
    """Base weights that are streamed lie in host memory: little of it, and they are rounded."""
    rich = _advise(_machine(), model="7b", prefer="precision")
    poor = _machine().model_copy(update={"host_available_bytes": 5 * GIB})
    advice = _advise(poor, model="7b", prefer="precision")
    assert rich.plan.quantization == "none" and advice.plan.quantization != "none"
    assert advice.host_bytes <= 0.85 * 5 * GIB
    none = _machine().model_copy(update={"host_available_bytes": GIB})
    refused = _advise(none, model="7b")
    assert refused.verdict == "OOM" and "host memory" in str(refused.findings)


def test_compiled_layers_are_advised_where_triton_runs():
    assert _advise(vram_gib=24).plan.compile
    assert "s a step (10%) against off" in _reason(_advise(vram_gib=24), "compile").because
    for card in ({"platform": "windows"}, {"capability": (6, 1)}):
        assert not _advise(_machine(**card, free_gib=23, total_gib=24)).plan.compile
    with pytest.raises(PlanError, match="needs Triton"):
        _advise(_machine(platform="windows"), overrides=["compile=true"])


def test_host_memory_holds_for_a_forecast_plan_too():
    pins = ["lora.rank=32", "quantization=none", "host_layers=32"]
    advice = _advise(vram_gib=8, model="7b", overrides=pins, live=_live(1, []))
    assert advice.verdict == "OOM" and advice.host_bytes > advice.budget.host.bytes
    assert advice.summary == f"7b on 8 GiB card: {advice.considered[0].why_not}"
    assert "host memory" in advice.summary


def test_a_better_plan_lacks_nothing_but_the_cards_memory():
    for size in (6, 8, 11, 16, 24):
        for model in ("7b", "13b"):
            advice = _advise(vram_gib=size, model=model)
            if advice.better is not None:
                assert advice.better.host_bytes <= advice.budget.host.bytes
                larger = _advise(vram_gib=advice.better_card_gib, model=model)
                finer = _quality(larger)[0] > _quality(advice)[0]
                stays = not larger.plan.host_layers < advice.plan.host_layers
                assert finer or not stays or _quality(larger)[1] >= 1.1 * _quality(advice)[1]


def test_a_command_with_data_names_it_throughout(tmp_path):
    folder = tmp_path / "my data"
    advice = _advise(vram_gib=12, model="13b", data=folder, live=_live(1, []))
    assert advice.command.count(f"--data-dir '{folder}'") == 2
    advice = _advise(_machine(), model="7b")
    assert advice.command == "lisa-train --auto --model 7b --weights FOLDER --data-dir DIR"
    advice = _advise(_machine(), model="7b", overrides=["weights=random"])
    assert advice.command == "lisa-train --auto --model 7b --weights random --data-dir DIR"
    with pytest.raises(PlanError, match="contradicts a named card"):
        _advise(vram_gib=12, overrides=["device=cpu"])


def test_the_budget_is_free_memory_less_context_and_margin():
    budget = _advise(_machine(free_gib=7.8)).budget
    assert budget.context.bytes == (512 + 70) * 2**20
    assert budget.margin.bytes == round(0.3 * GIB)
    assert budget.usable.bytes == round(7.8 * GIB) - budget.context.bytes - budget.margin.bytes
    assert (budget.free.basis, budget.margin.basis) == ("exact", "policy")
    large = _advise(_machine(free_gib=40.0, total_gib=48.0)).budget
    assert large.margin.bytes == round(0.03 * 40 * GIB)


def _budget(name: str, rows=()) -> Budget:
    machine = _machine(free_gib=78, total_gib=80, capability=(9, 0))
    gpu = machine.gpus[0].model_copy(update={"name": name})
    table = Table((*TABLE.rows, *rows), ())
    budget = _advise(machine.model_copy(update={"gpus": (gpu,)}), table=table).budget
    assert budget is not None
    return budget


def test_the_margin_comes_from_past_shortfalls():
    known = _budget("NVIDIA H100 80GB HBM3").margin
    assert known.basis == "tested" and "on this GPU model" in known.source
    assert known.bytes < _budget("Some card").margin.bytes
    plan = Plan.parse({"model": "7b", "device": "cuda"})
    bad = [
        TestedRow(id=f"user-{n}", title="t", source="user", status="measured", model="7b",
                  settings=plan.model_dump(exclude={"model", "schema_version"}, mode="json"),
                  gpu="Some card", verdict="FITS", peak_reserved_bytes=10 * GIB,
                  forecast_bytes=9 * GIB)
        for n in range(20)
    ]  # fmt: skip
    own = _budget("Some card", bad).margin
    assert own.bytes == pytest.approx(0.1 * 78 * GIB, rel=1e-3), "ten per cent short, twenty times"
    assert own.basis == "tested"


def test_memory_that_others_hold_is_not_counted():
    machine = _machine(free_gib=6.0, other_processes=2, other_process_bytes=2 * GIB)
    advice = _advise(machine)
    assert advice.needs.bytes < 6 * GIB - 2**29
    assert "2.00 GiB are held by other processes (2)" in "\n".join(map(str, advice.findings))


def test_the_seeds_claim_about_lora_is_contradicted_by_a_row():
    advice = _advise(vram_gib=8, model="7b", overrides=["quantization=nf4"])
    published, reason = [one for one in advice.reasons if one.setting == "lora"]
    assert "as published" in published.because and "r=16 on q,v: 0.0" in published.because
    assert "all-linear" in published.because and "slower" in published.because
    assert "never LoRA with 4-bit on 8 GB" in reason.because
    assert "row h100-7b-nf4-r8-cached: 4.73 GiB" in reason.because
    assert reason.basis == "tested"


def test_the_seeds_claim_about_no_lora_is_contradicted_too():
    advice = _advise(vram_gib=8, overrides=["lora=null"])
    assert advice.verdict == "FITS" and advice.plan.lora is None
    because = [r.because for r in advice.reasons if "the seed says" in r.because]
    assert because == [], "the user set it, so it is no automatic choice"


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), (None, "bf16")]
)
def test_dtype_follows_the_compute_capability(capability, dtype):
    advice = _advise(_machine(capability=capability))
    assert advice.plan.dtype == dtype
    basis = "policy" if capability is None else "exact"
    assert _reason(advice, "dtype").basis == basis


def test_bf16_on_an_old_card_is_refused():
    with pytest.raises(PlanError, match="no bf16 arithmetic"):
        _advise(_machine(capability=(7, 5)), overrides=["dtype=bf16"])


def test_tiny_when_asked_on_a_gpu():
    advice = _advise(_machine(), model="tiny")
    assert (advice.verdict, advice.plan.device, advice.plan.dtype) == ("FITS", "cuda", "bf16")
    same = {"device": "cpu", "dtype": "fp32"}
    assert advice.plan.model_copy(update=same) == tiny_cpu_plan()
    assert advice.needs.basis == "policy"


def test_tiny_with_settings_beyond_its_policy_is_unknown():
    advice = _advise(_machine(), model="tiny", overrides=["micro_batch=64", "effective_batch=64"])
    assert advice.verdict == "UNKNOWN"


def test_tiny_when_the_default_does_not_fit():
    advice = _advise(_machine(free_gib=1.38, total_gib=1.5))
    assert (advice.model, advice.verdict) == ("tiny", "FITS")
    because = [reason.because for reason in advice.reasons if reason.setting == "model"]
    assert any("usable" in text for text in because)
    assert advice.considered, "what was weighed for 7b stays listed"


def test_a_large_model_by_name_is_not_replaced():
    advice = _advise(_machine(free_gib=1.5, total_gib=2.0), model="7b")
    assert (advice.model, advice.verdict, advice.exit_code) == ("7b", "OOM", 1)


@pytest.mark.parametrize("platform", ["wsl", "windows"])
def test_where_the_driver_swaps_too_much_spills(platform):
    advice = _advise(_machine(free_gib=1.5, platform=platform), model="7b")
    assert (advice.verdict, advice.exit_code) == ("SPILLS", 1)


def test_a_card_that_windows_does_not_manage_fails_instead():
    machine = _machine(free_gib=1.5, platform="windows", wddm=False)
    assert _advise(machine, model="7b").verdict == "OOM"


def test_windows_has_no_expandable_segments():
    advice = _advise(_machine(platform="windows"))
    assert advice.plan.allocator == "" and advice.environment == {}
    assert "Windows" in _reason(advice, "allocator").because
    other = _advise(_machine())
    both = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    assert set(other.environment) == both


def test_of_several_gpus_the_one_with_most_free_memory(monkeypatch):
    install(monkeypatch, Card(uuid="GPU-a", free=2 * GIB), Card(uuid="GPU-b"))
    advice = advise(probe({}), evidence=Evidence(TABLE))
    assert advice.gpu.uuid == "GPU-b"
    assert advice.environment["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert "most free memory of 2" in _reason(advice, "gpu").because


def test_a_mig_instance_has_its_own_budget(monkeypatch):
    install(monkeypatch, fake_nvml.mig_card())
    advice = advise(probe({}), evidence=Evidence(TABLE))
    assert advice.gpu.uuid == "MIG-two"
    assert advice.budget.free.bytes == round(19.6 * GIB)


def test_shared_memory_has_no_expandable_segments(monkeypatch):
    install(monkeypatch, fake_nvml.unified_card())
    advice = advise(probe({}), "7b", evidence=Evidence(TABLE))
    assert advice.plan.allocator == "" and advice.environment == {}
    assert "shares the host's memory" in _reason(advice, "allocator").because


def test_unified_memory_is_budgeted_from_the_host(monkeypatch):
    install(monkeypatch, fake_nvml.unified_card())
    machine = probe({}).model_copy(update={"host_available_bytes": 100 * GIB})
    advice = advise(machine, evidence=Evidence(TABLE))
    assert advice.verdict == "FITS" and advice.budget.free.bytes == 97 * GIB
    assert advice.budget.free.basis == "policy"


def test_unknown_free_memory_is_not_guessed():
    machine = Machine(gpus=(Gpu(index=0, name="Silent card"),))
    advice = _advise(machine)
    assert (advice.verdict, advice.exit_code, advice.plan) == ("UNKNOWN", 3, None)
    assert "--vram 8GiB" in str(advice.findings[-1])


@pytest.mark.parametrize("effective", [1, 6, 7, 8, 20, 64])
def test_the_effective_batch_is_kept(effective):
    alone = [f"effective_batch={effective}", "questions_per_picture=1"]
    plan = _advise(vram_gib=80, overrides=alone).plan
    assert plan.effective_batch == effective == plan.micro_batch * plan.accumulation
    assert effective % plan.micro_batch == 0 and plan.micro_batch <= 20
    plan = _advise(vram_gib=80, overrides=alone[:1]).plan
    rows = -(-effective // 3)
    assert (plan.effective_batch, plan.questions_per_picture) == (effective, 3)
    assert plan.micro_batch * plan.accumulation >= rows > plan.micro_batch * (plan.accumulation - 1)


def test_three_questions_a_picture_unless_the_batch_or_the_data_say_otherwise(tmp_path):
    advice = _advise(vram_gib=8, model="7b")
    assert advice.plan.questions_per_picture == 3
    (reason,) = [one for one in advice.reasons if one.setting == "questions_per_picture"]
    assert "times the questions a second" in reason.because
    batch = ["micro_batch=2", "accumulation=10"]
    plan = _advise(vram_gib=8, model="7b", overrides=batch).plan
    assert (plan.questions_per_picture, plan.effective_batch) == (1, 20)
    plan = _advise(vram_gib=8, model="7b", overrides=["questions_per_picture=2"]).plan
    assert plan.questions_per_picture == 2
    # As many masks in the longest row as questions.
    for masks in (1, 2):
        advice = _advise(vram_gib=12, model="13b", data=tmp_path, live=_live(1, [], masks=masks))
        assert advice.plan.questions_per_picture == masks
        asked = 300 * masks
        size = DataCounts(train_pictures=270, val_pictures=30, epoch_questions=asked - 30 * masks,
                          val_questions=30 * masks)  # fmt: skip
        told = _advise(vram_gib=12, size=size)
        pinned = _advise(vram_gib=12, overrides=[f"questions_per_picture={masks}"])
        assert told.plan == pinned.plan, "the same question, the same plan"
        option = " --pictures 300" + (f" --questions {asked}" * (masks > 1))
        assert f"--vram 12GiB{option} --save plan.json" in told.command, "typed, it says the same"
    assert not [one for one in _advise(vram_gib=12, model="13b", data=tmp_path, live=_live(1, []))
                .reasons if one.setting == "questions_per_picture"]  # fmt: skip


def test_counts_that_so_many_processes_cannot_share_leave_rows_uneven():
    size = DataCounts(train_pictures=270, val_pictures=30, epoch_questions=270, val_questions=30)
    plan = _advise(target=Target(vram_bytes=24 * GIB, count=3), overrides=["processes=3"],
                   size=size).plan  # fmt: skip
    assert (plan.processes, plan.questions_per_picture, plan.effective_batch) == (3, 3, 20)


def test_without_counts_a_note_says_what_one_question_a_picture_gains():
    told = [str(one) for one in _advise(vram_gib=12, live=_live(1, [])).findings]
    (note,) = [one for one in told if "pictures with one question" in one]
    assert re.search(r"\d+% less time, bf16 base", note) and "questions_per_picture=1" in note
    for settings in (["questions_per_picture=3"], ["questions_per_picture=1"]):
        quiet = _advise(vram_gib=12, overrides=settings, live=_live(1, []))
        assert "pictures with one question" not in str(quiet.findings)


def test_of_default_models_that_all_fail_the_smaller_one_says_why_it_is_shown():
    small = Target(vram_bytes=24 * GIB, ram_bytes=4 * GIB)
    advice = _advise(target=small, overrides=["host_layers=20"])
    assert advice.verdict == "OOM" and advice.model == DEFAULT_MODELS[1]
    assert f"so the smaller {advice.model}" in str(advice.findings[0])


def test_the_effective_batch_is_kept_on_the_cpu():
    plan = _advise(overrides=["effective_batch=20"]).plan
    assert (plan.effective_batch, plan.micro_batch) == (20, 5)


def test_tiny_settings_beyond_its_row_are_unknown_on_the_cpu():
    advice = _advise(overrides=["lora.rank=32"])
    assert (advice.verdict, advice.exit_code, advice.command) == ("UNKNOWN", 3, None)
    assert advice.plan.lora.rank == 32


def test_settings_beyond_what_is_known_need_a_forecast():
    advice = _advise(vram_gib=80, overrides=["logits=all"])
    assert (advice.verdict, advice.exit_code) == ("UNKNOWN", 3)
    assert advice.plan is None


def _live(
    factor: float, asked: list[tuple[Plan, int | None]], masks: int = 1
) -> Callable[..., Forecast]:
    """Forecasts `factor` times what the usual settings take; of data, 100 text tokens."""

    def live(plan: Plan, text: int | None) -> Forecast:
        asked.append((plan, text))
        found = nearest(plan, text or 100)
        assert found is not None
        pool = round(factor * found.pool_bytes)
        sizes = {"tensors": pool, "pool": pool, "process": pool + GIB, "host": found.host_bytes}
        tiers = tuple(Tier(name=name, bytes=size, source="") for name, size in sizes.items())
        return Forecast(plan=plan, verdict="UNKNOWN", compute_capability=(8, 6), masks=masks,
                        text_tokens=text or 100, tiers=tiers)  # fmt: skip

    return live


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_special_settings_are_forecast_until_the_plan_stands(factor):
    asked: list[tuple[Plan, int | None]] = []
    advice = _advise(vram_gib=12, model="7b", overrides=["logits=all"], live=_live(factor, asked))
    assert advice.verdict == "FITS" and advice.plan.logits == "all"
    assert asked[-1] == (advice.plan, 512) and len(asked) <= 4
    assert advice.needs.basis == "forecast" and advice.forecast.plan == advice.plan
    assert advice.needs.bytes <= advice.budget.usable.bytes
    assert advice.needs.bytes > 0.75 * advice.budget.usable.bytes, "and spare memory is used"


@pytest.mark.parametrize("size", ["2b", "4b"])
def test_a_model_without_corners_is_forecast_live_and_told_what_pictures_cost(size, other_corners):
    other_corners.setattr(grid, "_model_in_grid", lambda name: name if name == "7b" else None)
    asked: list[tuple[Plan, int | None]] = []
    advice = _advise(vram_gib=8, model=f"sa2va-qwen3-vl-{size}", live=_live(1.2, asked))
    assert advice.verdict == "FITS" and advice.forecast.plan == advice.plan
    assert asked[-1] == (advice.plan, 512) and len(asked) <= 4
    why = _reason(advice, "max_pixels")
    assert "up to 1024 tokens" in why.because and "max_pixels=589824 (576 tokens)" in why.because
    rounded = advice.plan.quantization != "none"
    assert "saves this plan about" in why.because
    assert ("or buys less rounded weights" in why.because) == rounded
    one_size = _advise(vram_gib=8, model="7b")
    assert "max_pixels" not in [reason.setting for reason in one_size.reasons]


def _by_tokens(asked: list[Plan]) -> Callable[..., Forecast]:
    """Forecasts of the usual settings, by share of the tokens that a picture may take."""

    def live(plan: Plan, text: int | None) -> Forecast:
        asked.append(plan)
        return _live(plan.profile.most_image_tokens / 1024, [])(plan, text)

    return live


def test_pictures_are_shrunk_as_little_as_it_takes_where_no_other_plan_fits():
    asked: list[Plan] = []
    pins = ["checkpointed_layers=0", "quantization=nf4"]
    whole = _advise(vram_gib=6, model="qwen3-vl-4b", overrides=pins)
    assert whole.verdict == "OOM" and "pictures" not in str(whole.findings)
    advice = _advise(vram_gib=6, model="qwen3-vl-4b", overrides=pins, live=_by_tokens(asked))
    tokens = advice.plan.profile.most_image_tokens
    needed, usable = whole.needs.bytes, advice.budget.usable.bytes
    assert advice.exit_code == 0 and tokens == 128 * int(8 * usable / needed), "in eighths"
    assert f"max_pixels={advice.plan.max_pixels}" in advice.command
    note = next(one for one in advice.findings if one.where == "pictures")
    assert f"shrinks them to {tokens}" in note.what and "less well" in note.what
    leave_out = next(one for one in advice.findings if one.where == "settings")
    assert "without checkpointed_layers=0" in leave_out.what


def test_a_size_of_pictures_takes_one_forecast():
    """Four sizes, of which the first may need more: what it corrects leads to the others."""
    asked: list[Plan] = []

    def live(plan: Plan, text: int | None) -> Forecast:
        asked.append(plan)
        usual = nearest(plan, text or 512)
        lasting = usual.frozen_bytes + usual.trained_bytes
        rest = (usual.step_bytes - lasting) * plan.profile.most_image_tokens / 1024
        told = _live(1.0, [])(plan, text)
        tiers = [one.model_copy(update={"bytes": round(lasting + rest)}) if one.name == "pool"
                 else one for one in told.tiers]  # fmt: skip
        return told.model_copy(update={"tiers": tuple(tiers)})

    pins = ["checkpointed_layers=0", "quantization=nf4", "host_layers=0"]
    advice = _advise(vram_gib=6, model="qwen3-vl-4b", overrides=pins, live=live)
    assert advice.exit_code == 0 and "max_pixels" in advice.command
    assert len(asked) <= 5, [plan.max_pixels for plan in asked]


@pytest.mark.parametrize(
    ("model", "more"),
    [("qwen3-vl-4b", "max_pixels=1048576"), ("7b", ""), ("qwen3-vl-8b", "host_layers=0")],
)
def test_pictures_are_not_shrunk_where_their_size_is_given_or_fixed_or_would_not_help(model, more):
    asked: list[Plan] = []
    pins = ["checkpointed_layers=0", "quantization=nf4", *more.split()]
    advice = _advise(vram_gib=4, model=model, overrides=pins, live=_by_tokens(asked))
    assert advice.verdict == "OOM" and not asked


@pytest.mark.parametrize("failing", [True, False])
def test_without_a_forecast_of_smaller_pictures_the_answer_stays(failing):
    def live(plan: Plan, text: int | None) -> Forecast:
        if failing:
            raise RehearsalFailed("the rehearsal did not end")
        return _live(1, [])(plan, text).model_copy(update={"tiers": (), "reason": "unforeseen"})

    pins = ["checkpointed_layers=0", "quantization=nf4"]
    advice = _advise(vram_gib=6, model="qwen3-vl-4b", overrides=pins, live=live)
    assert advice.verdict == "OOM" and "max_pixels" not in str(advice.findings)


def test_a_smaller_limit_of_pictures_is_forecast():
    asked: list[Plan] = []
    pins = ["max_pixels=262144", "micro_batch=1", "host_layers=0"]
    whole = _advise(vram_gib=24, model="qwen3-vl-4b", overrides=pins[1:])
    advice = _advise(vram_gib=24, model="qwen3-vl-4b", overrides=pins, live=_by_tokens(asked))
    assert asked and advice.needs.bytes < whole.needs.bytes


def test_where_nothing_fits_the_plan_shown_lacks_the_least():
    target = Target(vram_bytes=4 * GIB, ram_bytes=8 * GIB)
    advice = _advise(target=target, model="qwen3-vl-8b")
    assert advice.verdict == "OOM" and advice.plan.quantization == "nf4"


@pytest.mark.parametrize(("vram", "model"), [(3, "sa2va-qwen3-vl-4b"), (4, "7b")])
def test_host_memory_is_named_where_it_is_what_lacks(vram, model):
    short = _advise(target=Target(vram_bytes=vram * GIB, ram_bytes=8 * GIB), model=model)
    assert short.verdict == "OOM" and "host memory is too small" in short.findings[0].what
    usual = _advise(vram_gib=vram, model=model)
    assert usual.verdict == "FITS" and usual.host_bytes > short.budget.host.bytes


def test_the_limit_on_pinned_memory_is_named_where_it_is_what_lacks():
    card = Gpu(index=0, name="Card", total_bytes=4 * GIB, free_bytes=4 * GIB,
               compute_capability=(8, 6))  # fmt: skip
    roomy = {"host_total_bytes": 20 * GIB, "host_available_bytes": 19 * GIB}
    short = advise(Machine(gpus=(card,), **roomy), "7b", ["quantization=none"])
    assert short.verdict == "OOM"
    (finding,) = [one for one in short.findings if "host memory is too small" in one.what]
    assert "would be pinned, 10.00 GiB, half of the machine's memory, may be" in finding.what
    assert finding.fix == "train in a machine with more memory"


def test_each_setting_that_would_do_is_named_or_all_of_them():
    pins = ["quantization=none", "host_layers=0"]
    advice = _advise(vram_gib=8, model="sa2va-qwen3-vl-4b", overrides=pins)
    each = [one.what for one in advice.findings if one.where == "settings"]
    assert each == [f"a plan fits without {setting}" for setting in pins]
    pins.append("checkpointed_layers=0")
    advice = _advise(vram_gib=6, model="7b", overrides=pins)
    (all_of_them,) = (one for one in advice.findings if one.where == "settings")
    assert all_of_them.what == f"a plan fits without {' '.join(pins)}"
    assert all_of_them.fix.startswith("leave them out: nf4")


def test_a_smaller_default_model_says_why_it_is_not_the_usual_one():
    advice = _advise(target=Target(vram_bytes=4 * GIB, ram_bytes=8 * GIB))
    assert advice.model == "sa2va-qwen3-vl-2b" and advice.findings[0].where == "model"
    assert "sa2va-qwen3-vl-4b on 4 GiB card: host memory" in advice.findings[0].what
    assert "model" not in [one.where for one in _advise(vram_gib=8).findings]


def test_special_settings_that_fit_nowhere_are_a_no():
    advice = _advise(vram_gib=8, model="7b", overrides=["logits=all"], live=_live(9, []))
    assert (advice.verdict, advice.command) == ("OOM", None)


def test_the_longest_sample_of_the_data_is_reckoned_with(tmp_path):
    asked: list[tuple[Plan, int | None]] = []
    advice = _advise(vram_gib=12, model="13b", data=tmp_path, live=_live(1, asked, masks=3))
    assert asked[0][1] is None and advice.text_tokens == 100
    assert _quality(advice) >= _quality(_advise(vram_gib=12, model="13b"))


@pytest.mark.parametrize("prefer", ["usual", "headroom"])
@pytest.mark.parametrize("size", [5, 6, 8, 11, 12, 16])
def test_what_speaks_against_less_rounding_is_what_decided(size, prefer):
    """Usually a tenth of the fastest plan's speed; nothing is said to be slower by less."""
    because = _reason(_advise(vram_gib=size, prefer=prefer), "quantization").because
    shares = [float(share) for share in re.findall(r"([-.\d]+)% slower", because)]
    assert all(share > 0 for share in shares), because
    for share in re.findall(r"([.\d]+)% slower than the fastest", because):
        assert float(share) >= 10
    assert prefer == "headroom" or not re.search(r"would train [.\d]+% slower(?! than)", because)


@pytest.mark.parametrize("tokens", [408, 1000])
def test_the_largest_picture_of_the_data_is_reckoned_with(tmp_path, tokens):
    """Its tokens make activations smaller, and not the weights; the plan's own limit stays."""
    asked: list[Plan] = []
    counts = DataCounts(train_pictures=100, val_pictures=9, epoch_questions=100, val_questions=9,
                        row_tokens=tokens + 60)  # fmt: skip

    def live(plan: Plan, text: int | None) -> Forecast:
        asked.append(plan)
        told, found = _live(1, [], masks=3)(plan, text), nearest(plan, text or 100)
        lasting = found.frozen_bytes + found.trained_bytes
        pool = lasting + round((found.step_bytes - lasting) * tokens / 1024)
        tiers = tuple(tier.model_copy(update={"bytes": pool}) if tier.name == "pool" else tier
                      for tier in told.tiers)  # fmt: skip
        update = {"tiers": tiers, "image_tokens": tokens, "data": counts}
        return told.model_copy(update=update)

    model = "qwen3-vl-4b"
    whole = _advise(vram_gib=8, model=model, text_tokens=100)
    advice = _advise(vram_gib=8, model=model, data=tmp_path, live=live)
    assert advice.verdict == "FITS" and advice.plan.max_pixels == whole.plan.max_pixels
    assert advice.needs.bytes > 0.75 * advice.budget.usable.bytes, "and spare memory is used"
    assert advice.disk.cache_bytes < 109 * 28 * 2**20
    if tokens == 408:
        assert asked[-1] == advice.plan and len(asked) <= 5
        assert _quality(advice) > _quality(whole)
        why = _reason(advice, "max_pixels")
        assert "up to 408 tokens" in why.because and why.value == str(whole.plan.max_pixels)
    else:
        assert len(asked) == 1 and advice.plan == whole.plan, "the grid is close enough, and quick"


def test_a_plan_that_was_forecast_to_fit_is_not_given_up_for_one_that_is_not():
    factors = iter((0.5, 2.0, 4.0, 8.0))
    advice = _advise(vram_gib=12, model="7b", overrides=["logits=all"],
                     live=lambda plan, text: _live(next(factors), [])(plan, text))  # fmt: skip
    assert advice.verdict == "FITS" and not list(factors)


def test_pins_hold_or_the_answer_is_no():
    pinned = ["quantization=none", "host_layers=0"]
    advice = _advise(vram_gib=8, model="7b", overrides=pinned)
    assert (advice.verdict, advice.plan.quantization, advice.plan.host_layers) == ("OOM", "none", 0)
    assert "a plan fits without quantization=none" in str(advice.findings)
    for text in ("checkpointed_layers=7", "micro_batch=2", "host_embeddings=true", "compile=false"):
        plan = _advise(vram_gib=48, model="7b", overrides=[text]).plan
        assert plan == plan.override([text])


def test_a_named_card_has_its_own_rates_and_memory():
    slow, quick = (
        _advise(model="7b", overrides=["quantization=nf4"], target=Target(card=find_gpu(name)))
        for name in ("RTX 3090", "RTX 4090")
    )
    assert slow.gpu.name.endswith("RTX 3090") and "RTX 3090" in slow.speed.source
    assert quick.speed.samples_per_second > 1.5 * slow.speed.samples_per_second
    old = _advise(model="7b", target=Target(card=find_gpu("T4")))
    assert old.plan.dtype == "fp16"


def test_a_card_under_windows_has_less_and_spills():
    linux, windows = (
        _advise(model="7b", target=Target(vram_bytes=8 * GIB, windows=on)) for on in (False, True)
    )
    assert windows.budget.free.bytes < linux.budget.free.bytes
    assert windows.plan.allocator == "" and not windows.plan.compile
    assert "--os windows" in windows.command
    assert "very slow" in str(windows.findings)


def test_what_the_user_set_has_no_automatic_reason():
    advice = _advise(vram_gib=8, overrides=["micro_batch=2", "allocator="])
    assert advice.plan.micro_batch == 2
    assert {"micro_batch", "allocator"}.isdisjoint({r.setting for r in advice.reasons})


def test_settings_that_cannot_run_are_refused_whatever_the_machine():
    for machine in (NO_GPU, _machine()):
        for model in (None, "7b", "tiny"):
            with pytest.raises(PlanError, match="keep one"):
                _advise(machine, model, ["train=head,embeddings"])


def test_the_model_may_be_set_but_not_two_ways():
    assert _advise(overrides=["model=13b"], vram_gib=12).model == "13b"
    with pytest.raises(PlanError, match="differs"):
        _advise(model="7b", overrides=["model=13b"])


def test_a_gpu_that_is_there_may_be_left_alone():
    advice = _advise(_machine(), overrides=["device=cpu"])
    assert (advice.model, advice.plan.device) == ("tiny", "cpu")


def _user_row(plan: Plan, text: int, **changes) -> TestedRow:
    facts = {
        "id": "user-1", "title": "mine", "source": "user", "status": "measured",
        "model": plan.model, "gpu": "Some card", "gpu_memory_gib": 8.0, "verdict": "FITS",
        "settings": plan.model_dump(mode="json", exclude={"model", "schema_version"}),
        "data_shape": DataShape(image_tokens=576, text_tokens=text),
        "date": datetime.date(2026, 1, 2),
    }  # fmt: skip
    return TestedRow.model_validate(facts | changes)


def test_a_users_out_of_memory_refutes_what_needs_as_much():
    first = _advise(_machine(), model="7b")
    died = _user_row(first.plan, 512, verdict="OOM")
    advice = _advise(_machine(), model="7b", table=Table((*TABLE.rows, died), ()))
    assert advice.verdict == "FITS" and advice.plan != first.plan
    relief = [one.plan.checkpointed_layers + one.plan.host_layers for one in (first, advice)]
    assert relief[1] > relief[0], "the same plan with more relief"
    longer = _user_row(first.plan, 900, verdict="OOM")
    again = _advise(_machine(), model="7b", table=Table((*TABLE.rows, longer), ()))
    assert again.plan == first.plan, "longer samples refute nothing"


def test_a_row_that_took_less_than_forecast_counts():
    first = _advise(_machine(), model="7b")
    held = _user_row(first.plan, 512, peak_reserved_bytes=5 * GIB)
    advice = _advise(_machine(), model="7b", table=Table((*TABLE.rows, held), ()))
    assert (advice.needs.basis, advice.needs.bytes) == ("tested", 5 * GIB)
    old = held.model_copy(update={"versions": {"torch": "1.9.0"}})
    less = _advise(_machine(), model="7b", table=Table((*TABLE.rows, old), ()))
    assert less.needs.bytes == round(1.02 * 5 * GIB) and "with torch 1.9" in less.needs.source
    shorter = _user_row(first.plan, 96, peak_reserved_bytes=5 * GIB)
    again = _advise(_machine(), model="7b", table=Table((*TABLE.rows, shorter), ()))
    assert again.needs.basis == "forecast", "shorter samples say nothing"


def test_what_the_card_or_the_machine_asks_for_is_told():
    old = _advise(model="7b", target=Target(card=find_gpu("GTX 1080 Ti")))
    assert "CUDA 12.6" in str(old.findings)
    assert "CUDA 12.6" not in str(_advise(model="7b", target=Target(card=find_gpu("T4"))).findings)


def test_damaged_rows_are_passed_on():
    table = Table(TABLE.rows, (TABLE.findings + tuple(read_bad().findings)))
    assert any("damaged" in str(finding) for finding in _advise(table=table).findings)


def read_bad() -> Table:
    from profiles.tested import parse_table

    return parse_table(b"{broken\n", "mine.jsonl")


def test_every_number_has_a_basis_and_every_lever_its_price():
    advice = _advise(_machine(free_gib=11.5, total_gib=11.75), model="7b", prefer="precision")
    document = json.loads(advice.model_dump_json())
    assert document["schema_version"] == 2
    for number in [document["needs"], *document["budget"].values()]:
        assert number["basis"] in {"exact", "tested", "forecast", "measured", "policy"}
    assert "saves" in _reason(advice, "host_layers").because
    assert "7.12 GiB" in _reason(advice, "cached_encoders").because
    assert "512 text tokens" in _reason(advice, "micro_batch").because
    assert Advice.model_validate_json(advice.model_dump_json()) == advice


@pytest.mark.parametrize("model", ["7b", "13b"])
@pytest.mark.parametrize("vram_gib", [6, 24])
def test_a_released_lisa_is_named_as_the_better_start_and_fits_too(model, vram_gib):
    plain = _advise(model=model, vram_gib=vram_gib)
    (note,) = [f for f in plain.findings if "released LISA" in f.what]
    released = _advise(model=note.fix.removeprefix("--model "), vram_gib=vram_gib)
    assert (released.model, released.verdict) == (f"{model}-v1", plain.verdict)
    # One who has named weights has chosen a start, and a released LISA has none that is better.
    named = _advise(model=model, vram_gib=vram_gib, overrides=("weights=random",))
    assert "released LISA" not in str((named.findings, released.findings))


def test_the_picture_holds_the_answer():
    advice = _advise(vram_gib=8, overrides=["seed=3", "schedule.shape=cosine"])
    svg = render_svg(advice)
    assert svg.startswith("<svg") and "FITS" in svg and 'url("http' not in svg
    shown = " ".join(html.unescape("".join(re.findall(r">([^<>]+)</text>", svg))).split())
    first, second = advice.command.splitlines()
    assert len(first) > 80, "and so in two lines of the picture"
    assert f"{first} {second}" in shown.replace(" \\ ", " "), shown


def test_a_mixture_is_forecast_with_what_its_samples_hold():
    """Neither the grid nor a row knows samples with several masks or long answers."""
    asked: list[tuple[Plan, int | None]] = []
    mixture = ["mixture.vqa=3", "mixture.sem_seg=9"]
    advice = _advise(vram_gib=12, model="7b", overrides=mixture, live=_live(1.1, asked))
    assert advice.verdict == "FITS" and advice.plan.mixture.vqa == 3
    assert asked[-1] == (advice.plan, 512) and advice.needs.basis == "forecast"
    assert "--set mixture.sem_seg=9" in advice.command
    assert _advise(vram_gib=12, model="7b", overrides=mixture).verdict == "UNKNOWN"
    # lisa-tiny is small whatever its samples hold
    assert _advise(overrides=mixture).verdict == "FITS"
    assert _advise(_machine(), model="tiny", overrides=mixture).verdict == "FITS"


def test_a_live_forecast_remembers_what_the_data_holds(monkeypatch, tmp_path):
    asked: list[Worst] = []

    def forecast(plan: Plan, worst: Worst, *rest: object, **context: object) -> Forecast:
        asked.append(worst)
        return Forecast(plan=plan, verdict="UNKNOWN", compute_capability=(8, 6), text_tokens=90,
                        masks=2, answer_tokens=70)  # fmt: skip

    monkeypatch.setattr("advisor.memory.live.forecast", forecast)
    live = live_forecast(NO_GPU, None, tmp_path, lambda text: None)
    live(Plan(), None)
    live(Plan(), 90)
    live(Plan(), 100)
    assert asked == [Worst(data=tmp_path), Worst(90, 2, None, 70), Worst(100, 2, None, 70)]


@pytest.mark.parametrize("verdict", ["FITS", "OOM"])
def test_work_grows_with_the_table_no_faster_than_its_rows(monkeypatch, verdict):
    looks = []
    for where in (choose, tested):
        compare = where.needs_no_more
        monkeypatch.setattr(
            where, "needs_no_more", lambda *of, to=compare: looks.append(of) or to(*of)
        )
    but_for = row_reasons._but_for
    monkeypatch.setattr(row_reasons, "_but_for", lambda *of: looks.append(of) or but_for(*of))

    def looked(plans: int, copies: int) -> tuple[int, str]:
        own = tuple(
            TestedRow(id=f"u{copy}-{number}", title="t", source="user", status="s", model="7b",
                      settings={"device": "cuda", "tokens": {"max_text_tokens": 64 + number}},
                      gpu="Some card", cap_bytes=8 * GIB, peak_allocated_bytes=5 * GIB,
                      peak_reserved_bytes=6 * GIB, verdict=verdict,
                      data_shape=DataShape(image_tokens=576, text_tokens=200))
            for copy in range(copies) for number in range(plans)
        )  # fmt: skip
        looks.clear()
        advice = _advise(model="7b", vram_gib=8, table=Table(TABLE.rows + own, ()))
        return len(looks), advice.model_dump_json()

    few, more = looked(20, 1), looked(40, 1)
    assert few[0] > 0 and more[0] <= 2.1 * few[0]
    again = looked(20, 9)
    assert again[1] == few[1] and again[0] <= few[0] + 4 * 9 * 20  # two levers, twice


@pytest.mark.parametrize(
    ("vram_gib", "model"), [(8, DEFAULT_MODELS[0]), (4, DEFAULT_MODELS[0]), (80, DEFAULT_MODELS[0])]
)
def test_the_default_is_a_model_that_was_trained_to_segment(vram_gib, model):
    advice = _advise(vram_gib=vram_gib)
    assert (advice.model, advice.verdict) == (model, "FITS")
    because = _reason(advice, "model").because
    assert "already trained to segment" in because and "81.7" in because
    named = _advise(vram_gib=vram_gib, model=model)
    assert named.plan == advice.plan and "model" not in {r.setting for r in named.reasons}


def test_a_storage_without_forecasts_is_not_weighed_by_another_models(other_corners):
    """Corners of one storage alone: the others' bytes would be those of a stand-in."""
    corners = {key: row for key, row in grid._corners().items() if key[:2] != ("7b", "int8")}
    other_corners.setattr(grid, "_corners", lambda: corners)
    other_corners.setattr(grid, "_storages", lambda: {key[:2] for key in corners})
    advice = _advise(vram_gib=12, model="7b")
    assert {one.plan.quantization for one in advice.considered} == {"nf4", "none"}
    assert advice.verdict == "FITS" and advice.plan.quantization == "nf4"


def test_the_parts_add_up_to_what_the_plan_needs():
    for size, model in ((8, "7b"), (12, "7b"), (8, "qwen3-vl-4b")):
        advice = _advise(vram_gib=size, model=model)
        assert list(advice.parts) == ["weights", "trained", "activations"]
        assert sum(advice.parts.values()) == advice.needs.bytes
        assert min(advice.parts.values()) > 0
