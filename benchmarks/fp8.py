"""Products of frozen NF4 weights in FP8: what they cost and gain, layer by layer and in a step.

    python benchmarks/fp8.py layers --out FILE             on a GPU with FP8 products
    python benchmarks/fp8.py step dtype|fp8 NAME --out FILE

Random weights of the true shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from profiles.plan import Plan
from trainer.model.layers import fp8
from trainer.model.layers.fp8 import Fp8Nf4Linear, nf4_codes, quantised, scales_of
from trainer.model.layers.frozen import Nf4Linear, nf4_inner, nf4_product, nf4_weight

ROOT = Path(__file__).resolve().parents[1]
ROWS = 6720  # tokens of ten samples
SHAPES = {"q, k, v, o": (4096, 4096), "gate, up": (11008, 4096), "down": (4096, 11008)}
BASE: dict[str, Any] = {
    "model": "7b", "weights": "random", "device": "cuda", "dtype": "bf16",
    "checkpointed_layers": "all", "compile": True, "host_embeddings": True,
}  # fmt: skip
STEPS = {
    "7b": (BASE | {"micro_batch": 10, "effective_batch": 20}, "96"),
    "7b-k4": (BASE | {"questions_per_picture": 4, "micro_batch": 8, "effective_batch": 64}, "192"),
}  # fmt: skip


def milliseconds(work: Callable[[], object]) -> float:
    """Median of 30, after three."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end))
    return round(statistics.median(taken), 4)


def off(made: Tensor, true: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((made.float() - true.float()).norm() / true.float().norm())


def same_codes(made: Tensor, twin: Tensor) -> int:
    """Codes that differ."""
    return int((made.view(torch.uint8) != twin.view(torch.uint8)).sum())


def layer(name: str, n: int, k: int) -> dict[str, Any]:
    """Time and error of one linear; how many codes of the kernels are not their twins'."""
    torch.manual_seed(0)
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    x = torch.randn(ROWS, k, device="cuda", dtype=torch.bfloat16)
    x[:, 7] *= 100  # an outlier channel, as LLaMA's first layers have
    x[5] = 0
    g = torch.randn(ROWS, n, device="cuda", dtype=torch.bfloat16) * 1e-4
    plain, fast = Nf4Linear(weight), Fp8Nf4Linear(weight)
    stored = fast.bits
    wide = nf4_weight(*stored, n, torch.float32)
    inner = nf4_inner(*stored[1:])
    codes, worth = quantised(x)
    there = fast.rows_worth, fast.columns_worth
    made = [nf4_codes(fast.packed, inner, w, n, bool(b)) for b, w in enumerate(there)]
    twin = [fp8.codes_of(wide.t() if b else wide, w[:, None]).contiguous()
            for b, w in enumerate(there)]  # fmt: skip
    scales, widened = scales_of(x.abs().amax(1, keepdim=True)), wide.bfloat16()
    true, true_back = x.float() @ wide.t(), g.float() @ wide
    fp8_fields, back = (*stored, *there), torch.ops.lisa_preflight.fp8_nf4_back
    return {
        "layer": name, "n": n, "k": k, "rows": ROWS,
        "codes_off": {"rows": same_codes(codes, fp8.codes_of(x, scales)),
                      "weight": same_codes(made[0], twin[0]),
                      "transposed": same_codes(made[1], twin[1])},
        "error": {"bf16": off(plain(x), true), "fp8": off(fast(x), true),
                  "bf16 back": off(nf4_product(g, *stored, n, True), true_back),
                  "fp8 back": off(back(g, *fp8_fields), true_back)},
        "ms": {"bf16 forward": milliseconds(lambda: plain(x)),
               "bf16 back": milliseconds(lambda: nf4_product(g, *stored, n, True)),
               "fp8 forward": milliseconds(lambda: fast(x)),
               "fp8 forward, shared codes": milliseconds(
                   lambda: fp8.fp8_nf4(x, codes, worth, *fp8_fields)),
               "fp8 back": milliseconds(lambda: back(g, *fp8_fields)),
               "bf16 product alone": milliseconds(lambda: x @ widened.t()),
               "fp8 product alone": milliseconds(
                   lambda: fp8.scaled_product(codes, worth, made[0], there[0], x.dtype)),
               "rows": milliseconds(lambda: quantised(x)),
               "weight": milliseconds(
                   lambda: nf4_codes(fast.packed, inner, there[0], n, False)),
               "transposed": milliseconds(
                   lambda: nf4_codes(fast.packed, inner, there[1], n, True)),
               "bf16 weight": milliseconds(lambda: nf4_weight(*stored, n, torch.bfloat16))},
    }  # fmt: skip


def step(products: str, name: str) -> dict[str, Any]:
    """One plan's training step under an 8 GB card's cap."""
    settings, text = STEPS[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "plan.json"
        place.write_text(Plan.parse(settings | {"products": products}).to_json())
        command = [sys.executable, "-m", "trainer.rehearse", str(place), "--text-tokens", text,
                   "--steps", "8", "--cap-gib", "7.3"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"step": name, "products": products, "error": done.stderr[-2500:]}
    return {"step": name, "products": products, "measurement": json.loads(done.stdout)}


def main() -> None:
    """Layers, or one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["layers", "step"])
    parser.add_argument("which", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = [step(*asked.which)] if asked.what == "step" else (
        layer(name, *shape) for name, shape in SHAPES.items())  # fmt: skip
    with asked.out.open("a") as file:
        for row in rows:
            facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
            file.write(json.dumps(row | facts) + "\n")
            m = row.get("measurement")
            print(json.dumps(row if not m else {key: m[key] for key in (
                "verdict", "step_seconds", "samples_per_second", "first_loss", "last_loss",
                "peak_allocated_bytes", "peak_reserved_bytes", "error")}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
