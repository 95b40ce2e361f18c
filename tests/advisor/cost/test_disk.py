"""What a training takes on disk: counted by the code that builds, converts, caches and saves."""

from __future__ import annotations

from collections import namedtuple
from math import prod
from pathlib import Path

import pytest
import torch

from advisor import doctor
from advisor.cost.disk import disk_of, run_bytes
from advisor.cost.duration import REASON_SEG
from advisor.cost.rooms import rooms
from advisor.machine.gpu import Machine
from profiles.exchange import trained_values
from profiles.models import DEFAULT_MODELS, models
from profiles.plan import Plan
from profiles.settings import TrainedPart
from profiles.sizes import GIB, gib
from tests.conftest import PHOTOS, tiny_plan
from trainer.convert.convert import needed_shapes
from trainer.data.formats.reasonseg import read_split
from trainer.model.build import build, counting_tokenizer
from trainer.model.weights import ShapesAlone
from trainer.reporter import Reporter
from trainer.run.run import Run

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("name", models())
def test_a_converted_folder_has_the_tensors_that_are_asked_for(name: str) -> None:
    profile = models()[name]
    assert profile.values == sum(map(prod, needed_shapes(profile).values()))
    stored, download = 2 * profile.values, profile.download_gb * 1e9
    if name.startswith("sa2va"):  # published in fp32
        stored *= 2
    assert profile.packaged or 0.99 * stored < download < 1.2 * stored, "SAM is in fp32"


@pytest.mark.parametrize("targets", ["qv", "attention", "all-linear"])
@pytest.mark.parametrize("name", ["tiny", "7b-v1", "13b", "qwen3-vl-2b", "qwen3-vl-8b"])
def test_trained_values_are_those_of_the_model_that_is_built(name: str, targets: str) -> None:
    profile = models()[name]
    parts: list[TrainedPart] = ["mask_decoder", "text_hidden_fcs"]
    parts += ["projector"] if profile.has_projector else []
    parts += {"qv": ["token_rows"], "attention": ["embeddings"]}.get(targets, [])  # type: ignore[arg-type]
    if targets == "all-linear":
        parts += ["token_rows"] if profile.decoder.tied_head else ["head"]
    plan = Plan.parse({"model": name, "weights": "random", "train": parts,
                       "lora": {"rank": 4, "targets": targets}})  # fmt: skip
    model = build(plan, counting_tokenizer(plan), torch.device("meta"), ShapesAlone())
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert trained_values(plan) == sum(trained)


def test_the_parts_follow_the_plan() -> None:
    base = disk_of(Plan.parse({"model": "7b"}))
    assert base.total_bytes == (base.download_bytes + base.converted_bytes + base.cache_bytes
                                + base.run_bytes)  # fmt: skip
    pictures = REASON_SEG.train_pictures + REASON_SEG.val_pictures
    assert base.cache_bytes == pictures * base.picture_bytes
    none = disk_of(Plan.parse({"model": "7b", "cached_encoders": []}))
    assert none.cache_bytes == 0 and none.download_bytes == base.download_bytes
    small, whole = (
        Plan.parse({"model": "7b", "optimizer_state": state}) for state in ("8bit", "fp32")
    )
    assert run_bytes(small) < 0.6 * run_bytes(whole)
    there = disk_of(Plan.parse({"model": "7b", "weights": "folder"}))
    assert there.total_bytes == base.cache_bytes + base.run_bytes and not there.sources
    tiny = disk_of(Plan.parse({"model": "tiny"}))
    assert tiny.download_bytes == tiny.converted_bytes == 0 < tiny.run_bytes


def test_a_run_folder_takes_what_is_said(tmp_path: Path) -> None:
    """Its two checkpoints and the best; a third is there while it is written."""
    plan = tiny_plan(max_train_samples=2, max_val_samples=1, schedule={"epochs": 2})
    quiet = Reporter(lambda text: None, lambda what, done, total: None)
    items = read_split(PHOTOS, "train", 2), read_split(PHOTOS, "val", 1)
    Run(plan, *items, tmp_path / "run", tmp_path / "cache", quiet).train()
    sizes = {place.name: sum(file.stat().st_size for file in place.glob("*.safetensors"))
             for place in (tmp_path / "run").iterdir() if place.is_dir()}  # fmt: skip
    assert sizes["last"] == pytest.approx(sizes["last-1"], rel=0.01)
    assert run_bytes(plan) == pytest.approx(3 * sizes["last"] + sizes["best"], rel=0.03)


def test_a_disk_holds_all_that_goes_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    disk = disk_of(Plan.parse({"model": "7b"}))
    (room,) = rooms(disk)
    assert room.needed_bytes == disk.total_bytes
    assert list(room.what) == ["download", "converted model", "run", "features"]


@pytest.mark.parametrize(("free", "status"), [(8, "note"), (80, "ok")])
def test_the_doctor_compares_it_with_what_is_free(
    free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.advisor.cli.test_commands import GPU

    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(0, 0, free * GIB))
    found = [c for c in doctor._room(Machine(gpus=(GPU,)), "7b") if c.name == "disk"]
    assert {check.status for check in found} == {status}
    assert "7b takes" in found[0].found and f"{free}.00 GiB free" in found[0].found
    assert ("HF_HOME" in found[0].remedy) == (status == "note")
    default = DEFAULT_MODELS[0]
    (usual,) = [c for c in doctor._room(Machine(gpus=(GPU,))) if c.name == "disk"]
    size = gib(disk_of(Plan.parse({"model": default})).total_bytes)
    assert f"{default} takes {size}" in usual.found
    (tiny,) = [c for c in doctor._room(Machine()) if c.name == "disk"]
    assert tiny.status == "ok", "without a card lisa-tiny is what trains"
    assert (
        "tiny takes" in tiny.found and f"{default}, for a machine with a GPU, {size}" in tiny.found
    )
