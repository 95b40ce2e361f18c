"""fp16 on a GPU, with its gradient scaler: ended midway and resumed, against two whole runs.

    python benchmarks/fp16_resume.py [--keep]

`--keep` adds the row to benchmarks/fp16_resume.jsonl. tests/gpu/test_resume_on_gpu.py checks the
same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from tests.conftest import PHOTOS, tiny_plan  # noqa: E402
from trainer.data.formats.reasonseg import read_split  # noqa: E402
from trainer.reporter import Reporter  # noqa: E402
from trainer.run.resume import resumable  # noqa: E402
from trainer.run.run import Run  # noqa: E402
from trainer.run.started import Keeping  # noqa: E402

ROWS_FILE = ROOT / "benchmarks" / "fp16_resume.jsonl"
MIDWAY = 7  # of 14 steps
End: TypeAlias = "tuple[torch.Tensor, dict[str, object], list[float]]"


class Ended(BaseException):
    """Stands for the process being gone."""


@contextmanager
def deterministic() -> Iterator[None]:
    """The same numbers in every run: cuDNN's attention, say, adds its gradients in any order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # Of cuBLAS for here alone: it is memory, which other tests forecast.
        given = patch.dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8")
        with given, sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
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


def end(folder: Path) -> End:
    """The trained values in one row, the scaler's state and the losses."""
    tensors = load_file(folder / "last" / "trained.safetensors")
    state = json.loads((folder / "last" / "state.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    flat = torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])
    return flat, state["scaler"], [row["loss"] for row in rows if "loss" in row]


def measured(folder: Path) -> dict[str, Any]:
    """Two whole runs, and one that is ended midway and resumed."""
    with deterministic():
        run(folder / "one", quiet()).train()
        run(folder / "two", quiet()).train()
        try:
            run(folder / "parts", quiet(MIDWAY)).train()
        except Ended:
            run(folder / "parts", quiet()).train(resumable(folder / "parts", lambda line: None))
    one, two, parts = (end(folder / name) for name in ("one", "two", "parts"))
    return {
        "steps": len(one[2]),
        "ended_after": MIDWAY,
        "scaler": one[1],
        "scaler_resumed": parts[1],
        "whole_apart": apart(one, two),
        "resumed_apart": apart(one, parts),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def apart(one: End, other: End) -> dict[str, float]:
    """How far trained values (relative) and losses of two runs differ."""
    losses = zip(one[2], other[2], strict=True)
    return {
        "trained": float((one[0] - other[0]).norm() / one[0].norm()),
        "loss": max(abs(a - b) for a, b in losses),
    }


def main() -> None:
    """Measure, print the row and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        row = json.dumps(measured(Path(folder)))
    print(row)
    if keep:
        with ROWS_FILE.open("a", encoding="utf-8") as file:
            file.write(f"{row}\n")


if __name__ == "__main__":
    main()
