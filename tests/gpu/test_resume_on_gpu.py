"""fp16 on the GPU, with its gradient scaler: killed and resumed, against two whole runs.

pytest -m gpu tests/gpu/test_resume_on_gpu.py -s    prints the figures
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import PHOTOS, tiny_plan
from trainer.data.formats.reasonseg import read_split
from trainer.reporter import Reporter
from trainer.run.resume import resumable
from trainer.run.run import Run
from trainer.run.started import Keeping

pytestmark = pytest.mark.gpu
MIDWAY = 7  # of 14 steps


class Ended(BaseException):
    """Stands for the process being gone."""


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same numbers in every run: cuDNN's attention, say, adds its gradients in any order."""
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def run(folder: Path, reporter: Reporter) -> Run:
    AcceleratorState._reset_state(reset_partial_state=True)
    plan = tiny_plan(
        device="cuda", dtype="fp16", micro_batch=1, accumulation=1, effective_batch=1,
        lora={"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "qv"},
        schedule={"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 2, "shape": "linear"},
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    train, val = read_split(PHOTOS, "train"), read_split(PHOTOS, "val", 2)
    return Run(plan, train, val, folder, folder / "cache", reporter, Keeping(minutes=0))


def quiet(steps: int | None = None) -> Reporter:
    """Says nothing; with `steps`, ends the process in the step after so many."""
    seen = [0]

    def progress(what: str, done: int, total: int) -> None:
        seen[0] += what.startswith("epoch")
        if seen[0] == (steps or 0) + 1 and steps is not None:
            raise Ended

    return Reporter(lambda text: None, progress)


def end(folder: Path) -> tuple[torch.Tensor, dict[str, object], list[float]]:
    """The trained values in one row, the scaler's state and the losses."""
    tensors = load_file(folder / "last" / "trained.safetensors")
    state = json.loads((folder / "last" / "state.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    flat = torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])
    return flat, state["scaler"], [row["loss"] for row in rows if "loss" in row]


def test_the_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    run(tmp_path / "one", quiet()).train()
    run(tmp_path / "two", quiet()).train()
    with pytest.raises(Ended):
        run(tmp_path / "parts", quiet(MIDWAY)).train()
    run(tmp_path / "parts", quiet()).train(resumable(tmp_path / "parts", lambda line: None))
    (one, scaler, losses), (two, _, again), (parts, its, theirs) = (
        end(tmp_path / name) for name in ("one", "two", "parts")
    )
    undisturbed = float((one - two).norm() / one.norm())
    resumed = float((one - parts).norm() / one.norm())
    steps = [max(abs(a - b) for a, b in zip(losses, rest, strict=True)) for rest in (again, theirs)]
    print(f"\nscaler {scaler}\ntrained values of two whole runs differ by {undisturbed:.1e}, of a "
          f"resumed one by {resumed:.1e}; losses by {steps[0]:.1e} and {steps[1]:.1e}")  # fmt: skip
    assert scaler and its == scaler
    assert undisturbed == 0, "this test needs runs that do not differ by themselves"
    assert resumed == 0 and losses == theirs
