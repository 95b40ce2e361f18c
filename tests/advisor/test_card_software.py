"""What the card's software lacks, what the shell overrules, and the remedy that helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor import doctor
from advisor.cli import app
from advisor.forecast import _verdict
from advisor.notes import shell_allocator
from advisor.preflight import advise
from advisor.probe import VGPU_NAME, Machine, probe
from profiles.plan import Finding
from tests.advisor.fake_nvml import GIB, Card, install
from tests.conftest import tiny_plan
from trainer.console import use_allocator
from trainer.data.reasonseg import DataError, _locate


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
    for name in ("RTX A5000 Laptop GPU", "", "RTX 3060 99GB", "RTX"):
        told = CliRunner().invoke(app, ["--gpu", name])
        assert told.exit_code == 2 and "--vram" in told.stderr


def test_a_moved_data_folder_leads_to_its_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        _locate(tmp_path / "gone")


def test_margin_and_what_is_free_are_told_apart() -> None:
    _, reason = _verdict(2 * GIB, 0, [], True, 5 * GIB, GIB // 2)
    assert "3.00 GiB stay free, 0.50 GiB of them as margin" in reason


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
