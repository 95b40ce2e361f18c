"""Does lisa-tiny learn as much from products in FP8? The demo's training, seed by seed.

    python benchmarks/fp8_learning.py [SEED ...]     rows of kind "demo" in benchmarks/fp8.jsonl
    python benchmarks/fp8_learning.py gradients      its row of kind "gradients": seconds

On the CPU, which rounds as a card with FP8 does. The same scenes, steps and seeds with products in
the plan's dtype are in benchmarks/shared.jsonl already (benchmarks/shared_demo.py).
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from shared_demo import SCENES, synthesise, trained
from tables import rows_of
from torch import nn

from tests.conftest import tiny_plan
from tests.trainer.model.test_model import loss_of, made

ROWS = Path(__file__).resolve().parent / "fp8.jsonl"


def gradients() -> dict[str, Any]:
    """How far lisa-tiny's adapters' gradients are from those in fp32, for two photographs.

    The factors B are drawn, as if trained: at the start they are zero, and A has no gradient.
    """
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}
    found = {}
    for dtype, products in product(("fp32", "bf16"), ("dtype", "fp8")):
        plan = tiny_plan(dtype=dtype, products=products, quantization="nf4", lora=lora)
        model, batch = made(plan)
        torch.manual_seed(0)
        factors = {n: p for n, p in model.named_parameters() if "lora_" in n}
        for name, factor in factors.items():
            if "lora_B" in name:
                nn.init.normal_(factor, std=0.02)
        loss_of(model.train(), batch).backward()
        found[dtype, products] = torch.cat([p.grad.flatten() for p in factors.values()]).double()
    true = found.pop(("fp32", "dtype"))
    return {"kind": "gradients", "date": datetime.date.today().isoformat(), "errors": [
        {"dtype": dtype, "products": products,
         "relative": float((made - true).norm() / true.norm()),
         "cosine": float(torch.cosine_similarity(made, true, dim=0))}
        for (dtype, products), made in found.items()]}  # fmt: skip


def main() -> None:
    """Each seed; its old rows go."""
    if sys.argv[1:] == ["gradients"]:
        kept = [row for row in rows_of(ROWS) if row.get("kind") != "gradients"] + [gradients()]
        print(json.dumps(kept[-1], indent=1))
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        return
    seeds = [int(text) for text in sys.argv[1:]] or [0, 1, 2]
    kept = [row for row in rows_of(ROWS) if row.get("kind") != "demo" or row["seed"] not in seeds]
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            synthesise(folder, seed, SCENES["one target"])
            kept.append(trained(folder, seed, "products=fp8") | {"products": "fp8"})
        print(json.dumps(kept[-1]), flush=True)
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
