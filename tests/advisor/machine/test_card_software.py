"""What the card's software lacks, what the shell overrules, and the remedy that helps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advisor import doctor
from advisor.choice.search import _with_forecast
from advisor.cli.main import app
from advisor.machine.budget import margin_for
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.nvml import VGPU_NAME
from advisor.machine.probe import probe
from advisor.machine.target import Target
from advisor.memory.forecast import _verdict
from advisor.preflight import advise
from advisor.report.findings import shell_allocator
from advisor.request import lacks_segments
from profiles.findings import Finding
from profiles.plan import Plan
from tests.advisor.fake_nvml import GIB, Card, install
from tests.conftest import tiny_plan
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import locate
from trainer.process import try_segments, use_allocator

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["GRID V100-16C", "NVIDIA A10-24Q", "GRID T4-8Q", "A16-2B4",
                                  "NVIDIA A100-4-20C", "GRID A100D-10CME"])  # fmt: skip
def test_a_virtual_gpu_is_known_by_its_name(name: str) -> None:
    assert VGPU_NAME.search(name)


@pytest.mark.parametrize("name", ["Tesla V100-SXM2-16GB", "A100-PCIE-40GB", "A10",
                                  "NVIDIA A100 MIG 1g.10gb", "GeForce RTX 4060"])  # fmt: skip
def test_a_whole_card_is_none(name: str) -> None:
    assert not VGPU_NAME.search(name)


def test_a_virtual_gpus_plan_has_no_expandable_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Card(name="NVIDIA A10-24Q", total=24 * GIB, free=23 * GIB))
    advice = advise(probe({}), "7b", [])
    assert advice.plan is not None and advice.plan.allocator == ""
    assert any("vGPU" in finding.what for finding in advice.findings)


def test_no_build_serves_kepler(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Card(name="Tesla K80", total=12 * GIB, free=11 * GIB, capability=(3, 7)))
    advice = advise(probe({}), "7b", [])
    assert advice.plan is None and advice.exit_code != 0
    assert "no build of torch" in advice.summary and "capability 3.7" in advice.summary


def test_the_shells_allocator_is_reported() -> None:
    plan = tiny_plan().model_copy(update={"device": "cuda"})
    found = shell_allocator({"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}, plan)
    assert isinstance(found, Finding) and "--set allocator=max_split_size_mb:128" in found.fix
    assert shell_allocator({}, plan) is None


def test_doctor_claims_no_segments_that_it_could_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_segments_tried", lambda: ("failed: not supported", False))
    check = doctor._segments(Machine())
    assert check.status == "note" and check.remedy == "--set allocator="


def test_every_refused_name_leads_to_vram() -> None:
    for name in ("RTX A5500 Max-Q", "", "RTX 3060 99GB", "RTX"):
        told = CliRunner().invoke(app, ["--gpu", name])
        assert told.exit_code == 2 and "--vram" in told.stderr


def test_a_moved_data_folder_leads_to_its_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        locate(tmp_path / "gone")


def test_margin_and_what_is_free_are_told_apart() -> None:
    _, reason = _verdict(2 * GIB, 0, [], True, 5 * GIB, GIB // 2)
    assert reason == "needs 2.00 GiB of 4.50 GiB usable (5.00 GiB less a margin of 0.50 GiB)"


@pytest.mark.parametrize("planned", ["expandable_segments:True", ""])
def test_the_plans_allocator_overrules_the_shells(
    planned: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forecast is of the plan's settings; without them what FITS may run out of memory."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "max_split_size_mb:128")
    use_allocator(tiny_plan(device="cuda", dtype="bf16", allocator=planned))
    assert [os.environ[name] for name in names] == [planned, planned]
    said = capsys.readouterr().err
    assert "max_split_size_mb:128" in said and "--set allocator=" in said


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize("planned", ["expandable_segments:True", ""])
def test_torch_hears_of_the_plans_allocator_though_it_has_read_the_variables(
    planned: str, newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing the libraries has it read them: a pool of 25 GiB became one of 33."""
    heard: list[str] = []
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    setter = heard.append if newer else None
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", setter, raising=False)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", heard.append)
    use_allocator(tiny_plan(device="cuda", dtype="bf16", allocator=planned))
    use_allocator(tiny_plan())  # on a CPU
    assert heard == [planned or "expandable_segments:False"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_tells_of_the_overruling(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "max_split_size_mb:128")
    use_allocator(tiny_plan(device="cuda", dtype="bf16"))
    assert ("of this shell; --set allocator=" in capsys.readouterr().err) == (rank == "0")


@pytest.mark.parametrize(("said", "blamed"), [
    ("CUDA driver error: operation not supported", True), ("", False)])  # fmt: skip
def test_segments_that_fail_at_the_start_name_the_setting(
    said: str, blamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual GPU that goes by an ordinary name is only known by trying."""
    import torch

    asked = []

    def empty(*size: int, device: str, **_: object) -> None:
        asked.append(device)
        if said:
            raise RuntimeError(said)

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1))
    monkeypatch.setattr(torch, "empty", empty)
    plan = tiny_plan(device="cuda", dtype="bf16", allocator="expandable_segments:True")
    if blamed:
        with pytest.raises(ValueError, match=r"(?s)not supported.*hint: --set allocator= "):
            try_segments(plan)
    else:
        try_segments(plan)
    assert asked == ["cuda:1"]
    try_segments(plan.override(["allocator="]))
    assert asked == ["cuda:1"]


def test_a_card_that_is_broken_is_not_blamed_on_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken(device: int) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        try_segments(tiny_plan(device="cuda", dtype="bf16"))


@pytest.mark.parametrize(("driver", "whole"), [("610.74", True), (None, True), ("616.92", False)])
def test_under_wsl_the_driver_decides(driver: str | None, whole: bool) -> None:
    """pytorch/pytorch#192330: mended in R615, 616.92 was tried."""
    machine = Machine(platform="wsl", driver_version=driver)
    assert bool(lacks_segments(machine, Gpu(index=0, name="NVIDIA RTX A4000"))) == whole


def test_a_saved_plan_with_segments_is_reported_on_a_virtual_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsals_here: None
) -> None:
    install(monkeypatch, Card(name="NVIDIA A10-24Q", total=24 * GIB, free=23 * GIB))
    monkeypatch.setattr("advisor.machine.cuda_context.rehearsed", None)
    saved = tmp_path / "plan.json"
    for allocator, noted in (("expandable_segments:True", True), ("", False)):
        plan = tiny_plan(device="cuda", dtype="bf16", allocator=allocator, micro_batch=1,
                         accumulation=1, effective_batch=1)  # fmt: skip
        saved.write_text(plan.to_json())
        told = CliRunner().invoke(app, ["check", str(saved)])
        assert ("vGPU" in told.stderr and "--set allocator=" in told.stderr) == noted, told.output


@pytest.mark.parametrize("model", ["7b", "tiny"])
def test_on_a_virtual_gpu_the_shells_allocator_is_reported_too(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card(name="NVIDIA A10-24Q", total=24 * GIB, free=23 * GIB))
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    advice = advise(probe({}), model, [], evidence=Evidence.here())
    assert advice.plan is not None and advice.plan.allocator == ""
    because = [reason.because for reason in advice.reasons if reason.setting == "allocator"]
    assert "vGPU" in because[0] and "Windows" not in because[0]
    assert any("max_split_size_mb" in (f.got or "") for f in advice.findings)


@pytest.mark.parametrize(("build", "told"), [("2.13.0", True), ("2.13.0+cu126", False)])
def test_an_older_card_names_a_build_that_serves_it(
    build: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card(name="Tesla P100", total=16 * GIB, free=15 * GIB, capability=(6, 0)))
    advice = advise(probe({}), "7b", [], evidence=Evidence(versions={"torch": build}))
    assert any("CUDA 12.6, up to 2.14" in (f.fix or "") for f in advice.findings) == told


@pytest.mark.parametrize(("capability", "served"), [
    ((6, 1), False), ((7, 0), False), ((7, 5), True), ((8, 9), True), ((9, 0), True),
    ((10, 3), True), ((11, 0), False), ((12, 1), True)])  # fmt: skip
def test_which_cards_a_build_serves(capability: tuple[int, int], served: bool) -> None:
    built = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120", "compute_120"]
    assert doctor.serves(built, capability) == served


def test_the_doctor_sees_a_build_without_the_cards_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Card(name="Tesla P100", total=16 * GIB, free=15 * GIB, capability=(6, 0)))
    facts = {"versions": {}, "torch_cuda": "13.0", "cuda_available": True,
             "architectures": ["sm_75", "sm_80"]}  # fmt: skip
    (check,) = [one for one in doctor._driver(probe({}), facts) if one.name == "torch's kernels"]
    assert check.status == "fail" and "6.0" in check.found and "CUDA 12.6" in check.remedy
    facts["architectures"] = ["sm_60"]
    assert "torch's kernels" not in [one.name for one in doctor._driver(probe({}), facts)]


def test_a_compiled_plans_margin_covers_what_its_pool_took_beyond_the_forecast() -> None:
    plans = {
        record["name"]: record["measurement"]["plan"]
        for name in ("lattice_measured", "lean")
        for record in map(json.loads, (ROOT / "benchmarks" / f"{name}.jsonl").open())
    }
    seen = 0
    for row in map(json.loads, (ROOT / "benchmarks" / "forecast_rows.jsonl").open()):
        told, took = row["forecast"]["pool"], row["measured"]["pool"]
        if row["group"].startswith("compiled") and took > GIB:
            seen += 1
            margin = margin_for(Plan.parse(plans[row["name"]]), told, 0)
            assert told + margin >= took - 2**20, row["name"]  # shares are rounded
    assert seen > 40
    usual = Plan.parse({"model": "7b", "device": "cuda"})  # not compiled
    assert margin_for(usual.override(["allocator=expandable_segments:True"]), 8 * GIB, 0) == 0


@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_advice_and_check_keep_the_same_margin(allocator: str) -> None:
    """What `advise` calls FITS `check` did not where the doubt about whole segments was larger."""
    advice = advise(Machine(), "7b", [], Target(vram_bytes=24 * GIB))
    assert advice.plan is not None and advice.budget is not None
    budget = advice.budget
    plan = advice.plan.override([f"allocator={allocator}"])
    candidate = advice.considered[0].model_copy(update={"plan": plan})
    setting: Any = SimpleNamespace(budget=budget, spills=False, counted_by="")
    seen = set()
    for share in (0.85, 0.90, 0.92, 0.94, 0.95, 0.97, 0.99, 1.0, 1.01):
        pool = round(share * budget.cap_bytes)
        margin = margin_for(plan, pool, budget.margin.bytes)
        checked, _ = _verdict(pool, 0, [(0, pool)], True, budget.cap_bytes, margin)
        told: Any = SimpleNamespace(
            tier=lambda name, pool=pool: SimpleNamespace(bytes={"pool": pool, "host": 0}[name])
        )
        advised = _with_forecast(candidate, told, setting)
        assert advised.verdict == checked, (share, advised.verdict, checked)
        assert (advised.needs.bytes <= budget.usable.bytes) == (checked == "FITS")  # as is shown
        seen.add(checked)
    assert seen == {"FITS", "TIGHT", "OOM"}
