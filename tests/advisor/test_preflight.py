"""The advice for faked machines: what is chosen, and what each choice says for itself."""

import datetime
import json
from pathlib import Path

import pytest

from advisor.choose import GIB as CHOOSE_GIB
from advisor.choose import speed_of, tiny_cpu_plan
from advisor.preflight import Advice, advise
from advisor.probe import Gpu, Machine, probe
from advisor.report import render_svg
from profiles.plan import PlanError
from profiles.tested import Table, TestedRow, read_table
from tests.advisor import fake_nvml
from tests.advisor.fake_nvml import GIB, Card, install

SHIPPED = read_table(Path("/nonexistent/tested.jsonl"))
# How rows are weighed is tested on a table that stays as it is.
TABLE = Table(tuple(row for row in SHIPPED.rows if not row.id.startswith("lean-")), ())
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
    return Machine(gpus=(gpu,), platform=platform)


def _advise(machine=NO_GPU, model=None, overrides=(), vram_gib=None, table=TABLE) -> Advice:
    vram = None if vram_gib is None else round(vram_gib * GIB)
    return advise(machine, model, overrides, vram, table=table)


def _reason(advice: Advice, setting: str):
    (reason,) = [reason for reason in advice.reasons if reason.setting == setting]
    return reason


def test_gib_is_gib():
    assert CHOOSE_GIB == GIB == 1024**3


def test_without_a_gpu_tiny_trains_on_the_cpu():
    advice = _advise()
    assert (advice.verdict, advice.exit_code) == ("FITS", 0)
    assert advice.plan == tiny_cpu_plan()
    assert advice.command == "lisa-train --auto --model tiny --data-dir DIR"
    assert advice.environment == {}
    notes = "\n".join(map(str, advice.findings))
    assert "7b trains from a 6 GiB card" in notes and "13b trains from a 10 GiB card" in notes


@pytest.mark.parametrize("model", ["7b", "13b", "7b-v1"])
def test_a_large_model_without_a_gpu_cannot_be_decided(model):
    advice = _advise(model=model)
    assert (advice.verdict, advice.exit_code, advice.plan) == ("UNKNOWN", 3, None)
    assert advice.command is None
    assert f"lisa-advise --model {model} --vram 8GiB" in str(advice.findings[-1])


def test_a_lost_gpu_is_never_chosen(monkeypatch):
    install(monkeypatch, fake_nvml.lost_card())
    assert advise(probe({}), table=TABLE).model == "tiny"
    install(monkeypatch, Card(uuid="GPU-a"), fake_nvml.lost_card(), Card(uuid="GPU-c"))
    advice = advise(probe({}), table=TABLE)
    assert advice.gpu is not None and advice.gpu.lost is None


@pytest.mark.parametrize(
    ("vram_gib", "model", "verdict", "row", "micro_batch", "checkpointed"),
    [
        (6, "7b", "FITS", "h100-7b-nf4-r8-cached", 1, 32),
        (8, "7b", "FITS", "h100-7b-nf4-r8-cached-b4", 4, 32),
        (12, "7b", "FITS", "h100-7b-nf4-r8-cached-b8", 5, 32),
        (24, "7b", "FITS", "h100-7b-nf4-r8-cached-b8", 5, 32),
        (80, "7b", "FITS", "h100-7b-nf4-r8-cached-b8-kept", 5, 0),
        (5.9, "7b", "FITS", "h100-7b-nf4-r8-cached", 1, 32),
        (5.6, "7b", "TIGHT", "h100-7b-nf4-r8-cached", 1, 32),
        (4, "7b", "OOM", "h100-7b-nf4-r8-cached", 1, 32),
        (8, "13b", "OOM", "h100-13b-nf4-r8-cached", 1, 40),
        (10, "13b", "FITS", "h100-13b-nf4-r8-cached", 1, 40),
        (8, "7b-v1", "FITS", "h100-7b-nf4-r8-cached-b4", 4, 32),
    ],
)
def test_what_a_card_of_this_size_gets(vram_gib, model, verdict, row, micro_batch, checkpointed):
    advice = _advise(vram_gib=vram_gib, model=model)
    assert (advice.verdict, advice.considered[0].row_id) == (verdict, row)
    assert advice.plan.model == model
    assert advice.plan.micro_batch == micro_batch
    assert advice.plan.checkpointed_layers == checkpointed
    assert advice.plan.effective_batch == 20, "the recipe is the user's"
    assert (advice.command is None) == (verdict == "OOM")


@pytest.mark.parametrize(
    ("vram_gib", "model", "verdict", "host_layers"),
    [(4, "7b", "FITS", 20), (6, "7b", "FITS", 32), (6, "13b", "FITS", 20), (8, "13b", "FITS", 6),
     (2, "7b", "OOM", 20)],
)  # fmt: skip
def test_the_shipped_rows_reach_small_cards(vram_gib, model, verdict, host_layers):
    advice = _advise(vram_gib=vram_gib, model=model, table=SHIPPED)
    assert (advice.verdict, advice.plan.host_layers) == (verdict, host_layers)
    if model == "7b":
        assert _reason(advice, "host_embeddings").basis == "tested"


def test_compiled_layers_are_advised_where_triton_runs():
    assert _advise(vram_gib=8, table=SHIPPED).plan.compile
    assert "off" in _reason(_advise(vram_gib=8, table=SHIPPED), "compile").because
    for card in ({"platform": "windows"}, {"capability": (6, 1)}):
        advice = _advise(_machine(**card), table=SHIPPED)
        assert not advice.plan.compile
        assert any("needs Triton" in c.why_not for c in advice.considered)
    with pytest.raises(PlanError, match="needs Triton"):
        _advise(_machine(platform="windows"), overrides=["compile=true"], table=SHIPPED)


def test_the_budget_is_free_memory_less_context_and_margin():
    budget = _advise(_machine(free_gib=7.8)).budget
    assert budget.usable.bytes == round(7.8 * GIB) - GIB // 2 - round(0.3 * GIB)
    assert (budget.free.basis, budget.margin.basis) == ("exact", "policy")
    large = _advise(_machine(free_gib=40.0, total_gib=48.0)).budget
    assert large.margin.bytes == round(0.03 * 40 * GIB)


def test_memory_that_others_hold_is_not_counted():
    machine = _machine(free_gib=6.0, other_processes=2, other_process_bytes=2 * GIB)
    advice = _advise(machine)
    assert advice.plan.micro_batch == 1
    assert "2.00 GiB are held by other processes (2)" in "\n".join(map(str, advice.findings))


def test_the_seeds_claim_about_lora_is_contradicted_by_a_row():
    reason = _reason(_advise(vram_gib=8), "lora")
    assert "never LoRA with 4-bit on 8 GB" in reason.because
    assert "contradicted by row h100-7b-nf4-r8-cached: 4.73 GiB" in reason.because
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
    advice = _advise(_machine(free_gib=3.5, total_gib=4.0))
    assert (advice.model, advice.verdict) == ("tiny", "FITS")
    because = [reason.because for reason in advice.reasons if reason.setting == "model"]
    assert any("4.82 GiB" in text for text in because)
    assert advice.considered, "what was weighed for 7b stays listed"


def test_a_large_model_by_name_is_not_replaced():
    advice = _advise(_machine(free_gib=3.5, total_gib=4.0), model="7b")
    assert (advice.model, advice.verdict, advice.exit_code) == ("7b", "OOM", 1)


@pytest.mark.parametrize("platform", ["wsl", "windows"])
def test_where_the_driver_swaps_too_much_spills(platform):
    advice = _advise(_machine(free_gib=4.0, platform=platform), model="7b")
    assert (advice.verdict, advice.exit_code) == ("SPILLS", 1)


def test_windows_has_no_expandable_segments():
    advice = _advise(_machine(platform="windows"))
    assert advice.plan.allocator == "" and advice.environment == {}
    assert "Windows" in _reason(advice, "allocator").because
    other = _advise(_machine())
    both = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    assert set(other.environment) == both


def test_of_several_gpus_the_one_with_most_free_memory(monkeypatch):
    install(monkeypatch, Card(uuid="GPU-a", free=2 * GIB), Card(uuid="GPU-b"))
    advice = advise(probe({}), table=TABLE)
    assert advice.gpu.uuid == "GPU-b"
    assert advice.environment["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert "most free memory of 2" in _reason(advice, "gpu").because


def test_a_mig_instance_has_its_own_budget(monkeypatch):
    install(monkeypatch, fake_nvml.mig_card())
    advice = advise(probe({}), table=TABLE)
    assert advice.gpu.uuid == "MIG-two"
    assert advice.budget.free.bytes == round(19.6 * GIB)


def test_unified_memory_is_budgeted_from_the_host(monkeypatch):
    install(monkeypatch, fake_nvml.unified_card())
    machine = probe({}).model_copy(update={"host_available_bytes": 100 * GIB})
    advice = advise(machine, table=TABLE)
    assert advice.verdict == "FITS" and advice.budget.free.bytes == 97 * GIB
    assert advice.budget.free.basis == "policy"


def test_unknown_free_memory_is_not_guessed():
    machine = Machine(gpus=(Gpu(index=0, name="Silent card"),))
    advice = _advise(machine)
    assert (advice.verdict, advice.exit_code, advice.plan) == ("UNKNOWN", 3, None)
    assert "--vram 8GiB" in str(advice.findings[-1])


@pytest.mark.parametrize("effective", [1, 6, 7, 8, 20, 64])
def test_the_effective_batch_is_kept(effective):
    plan = _advise(vram_gib=80, overrides=[f"effective_batch={effective}"]).plan
    assert plan.effective_batch == effective == plan.micro_batch * plan.accumulation
    assert plan.micro_batch == max(n for n in range(1, 9) if effective % n == 0)


def test_the_effective_batch_is_kept_on_the_cpu():
    plan = _advise(overrides=["effective_batch=20"]).plan
    assert (plan.effective_batch, plan.micro_batch) == (20, 5)


def test_tiny_settings_beyond_its_row_are_unknown_on_the_cpu():
    advice = _advise(overrides=["lora.rank=32"])
    assert (advice.verdict, advice.exit_code, advice.command) == ("UNKNOWN", 3, None)
    assert advice.plan.lora.rank == 32


def test_settings_beyond_every_row_are_unknown():
    advice = _advise(vram_gib=80, overrides=["lora.rank=128"])
    assert (advice.verdict, advice.exit_code) == ("UNKNOWN", 3)
    assert all(candidate.why_not for candidate in advice.considered)


def test_a_set_rank_finds_the_row_that_covers_it():
    advice = _advise(vram_gib=8, overrides=["lora.rank=64"])
    assert advice.considered[0].row_id == "h100-7b-nf4-r64-cached-paged8bit"
    assert advice.plan.lora.rank == 64
    smaller = _advise(vram_gib=8, overrides=["lora.rank=4"])
    assert smaller.considered[0].row_id == "h100-7b-nf4-r8-cached-b4"


def test_what_the_user_set_has_no_automatic_reason():
    advice = _advise(vram_gib=8, overrides=["micro_batch=2", "allocator="])
    assert advice.plan.micro_batch == 2
    assert {"micro_batch", "allocator"}.isdisjoint({r.setting for r in advice.reasons})


def test_settings_that_cannot_run_are_refused_whatever_the_machine():
    for machine in (NO_GPU, _machine()):
        for model in (None, "7b", "tiny"):
            with pytest.raises(PlanError, match="quantised"):
                _advise(machine, model, ["quantized_parts=llama,mask_decoder"])


def test_the_model_may_be_set_but_not_two_ways():
    assert _advise(overrides=["model=13b"], vram_gib=12).model == "13b"
    with pytest.raises(PlanError, match="differs"):
        _advise(model="7b", overrides=["model=13b"])


def test_a_gpu_that_is_there_may_be_left_alone():
    advice = _advise(_machine(), overrides=["device=cpu"])
    assert (advice.model, advice.plan.device) == ("tiny", "cpu")


def _user_row(**changes) -> TestedRow:
    row = TABLE.row("h100-7b-nf4-r8-cached-b4")
    facts = {
        "id": "user-1",
        "source": "user",
        "gpu": "Some card",
        "gpu_memory_gib": 8.0,
        "cap_bytes": None,
        "date": datetime.date(2026, 1, 2),
    }
    return row.model_copy(update=facts | changes)


def test_a_users_out_of_memory_refutes_what_needs_as_much():
    died = _user_row(verdict="OOM", peak_allocated_bytes=None, peak_reserved_bytes=None)
    table = Table((*TABLE.rows, died), ())
    advice = _advise(_machine(), table=table)
    assert advice.plan.micro_batch == 1
    (refuted,) = [c for c in advice.considered if "user-1" in c.why_not]
    assert (refuted.row_id, refuted.verdict) == ("h100-7b-nf4-r8-cached-b4", "OOM")


def test_damaged_rows_are_passed_on():
    table = Table(TABLE.rows, (TABLE.findings + tuple(read_bad().findings)))
    assert any("damaged" in str(finding) for finding in _advise(table=table).findings)


def read_bad() -> Table:
    from profiles.tested import parse_table

    return parse_table(b"{broken\n", "mine.jsonl")


def test_speed_is_read_interpolated_or_bounded():
    row = TABLE.row("h100-7b-nf4-r8-cached-b8")
    tested = speed_of(row, TABLE.rows, 8)
    assert (round(tested.samples_per_second, 2), tested.basis) == (13.33, "tested")
    between = speed_of(row, TABLE.rows, 5)
    assert between.samples_per_second == pytest.approx(5 / 0.42)
    assert between.basis == "forecast"
    kept = TABLE.row("h100-7b-nf4-r8-cached-b8-kept")
    assert speed_of(kept, TABLE.rows, 1).samples_per_second == pytest.approx(1 / 0.23)
    assert speed_of(row, TABLE.rows, 16) is None


def test_every_number_has_a_basis_and_every_lever_its_price():
    advice = _advise(_machine(free_gib=11.5, total_gib=11.75))
    document = json.loads(advice.model_dump_json())
    assert document["schema_version"] == 1
    for number in [document["needs"], *document["budget"].values()]:
        assert number["basis"] in {"exact", "tested", "forecast", "measured", "policy"}
    assert "30.35 GiB" in _reason(advice, "checkpointed_layers").because
    assert "7.12 GiB" in _reason(advice, "cached_encoders").because
    assert "96 text tokens" in _reason(advice, "tokens.max_text_tokens").because
    assert Advice.model_validate_json(advice.model_dump_json()) == advice


def test_the_picture_holds_the_answer():
    svg = render_svg(_advise(vram_gib=8))
    assert svg.startswith("<svg") and "FITS" in svg and "lisa-train" in svg
