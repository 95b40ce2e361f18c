"""Draw the configurations on which the forecast is judged, and forecast them before any is run.

    python benchmarks/lattice.py [--count 44] [--seed 4]     writes benchmarks/lattice.jsonl

Every setting that moves memory is drawn at random, independently; a plan that contradicts itself or
is forecast above `LARGEST` is drawn again. Half of the rows are set aside here, by the same seed:
nothing may be tuned on them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from profiles.plan import Plan, PlanError

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "lattice.jsonl"
LARGEST = 24 * 2**30  # bytes of tensors: the largest card of the tables
MODELS = {"tiny": 5, "7b": 20, "7b-v1": 7, "13b": 12}


def draw(rng: random.Random) -> dict[str, Any]:
    """One row: settings, text tokens and masks of a sample."""
    model = rng.choices(list(MODELS), list(MODELS.values()))[0]
    layers = {"tiny": 4, "13b": 40}.get(model, 32)
    checkpointed = rng.choice([0, layers // 2, layers, layers])
    rank = rng.choice([0, 4, 8, 16, 32, 64])
    targets = rng.choice(["qv", "attention", "all-linear"])
    lora = {"rank": rank, "alpha": 2 * rank, "dropout": rng.choice([0.0, 0.05]), "targets": targets}
    train = rng.choice([["mask_decoder", "text_hidden_fcs", "token_rows"],
                        ["projector", "text_hidden_fcs", "token_rows"],
                        ["mask_decoder", "text_hidden_fcs", "embeddings"]])  # fmt: skip
    whole = "embeddings" in train
    settings = {
        "model": model, "weights": "random", "device": "cuda", "dtype": "bf16",
        "quantization": rng.choice(["nf4", "nf4", "int8", "none"]),
        "lora": lora if rank else None,
        "train": train,
        "micro_batch": rng.choice([1, 2, 4, 8, 16]),
        "accumulation": rng.choice([1, 2]),
        "checkpointed_layers": checkpointed,
        "cached_encoders": rng.choice([["sam", "clip"], ["sam", "clip"], ["sam"], []]),
        "host_embeddings": not whole and rng.random() < 0.5,
        "host_layers": rng.choice([0, 0, checkpointed // 4, checkpointed]),
        "logits": rng.choice(["supervised", "supervised", "all"]),
        "mask_loss_resolution": rng.choice([256, 256, 512, 1024]),
        "optimizer": rng.choice(["adamw", "adamw", "paged_adamw"]),
        "optimizer_state": rng.choice(["fp32", "8bit"]),
        "allocator": rng.choice(["", "expandable_segments:True"]),
        "tokens": {"max_text_tokens": 1500},
    }  # fmt: skip
    text = round(32 * (1500 / 32) ** rng.random())
    return {"settings": settings, "text": text, "masks": rng.choice([1, 1, 2, 4])}


def fake(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its forecast, or None if it cannot run or is too large."""
    try:
        plan = Plan.parse(row["settings"])
    except PlanError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json())
        command = [sys.executable, "-m", "trainer.rehearsal", str(path), "--fake",
                   "--compute-capability", "9.0", "--text-tokens", str(row["text"]),
                   "--masks", str(row["masks"])]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        print(row, done.stderr[-1500:], file=sys.stderr)
        return None
    peak = json.loads(done.stdout)["peak_allocated_bytes"]
    print(f"{plan.model:6} {peak / 2**30:6.2f} GiB", flush=True)
    return row | {"forecast_before_bytes": peak} if peak <= LARGEST else None


def main() -> None:
    """Draw until enough rows stand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=44)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(2) as pool:
        while len(rows) < arguments.count:
            drawn = [draw(rng) for _ in range(8)]
            rows += [row for row in pool.map(fake, drawn) if row is not None]
    rows = rows[: arguments.count]
    held = set(rng.sample(range(len(rows)), len(rows) // 2))
    lines = [json.dumps({"name": f"draw-{index:02}", "held_out": index in held} | row)
             for index, row in enumerate(rows)]  # fmt: skip
    ROWS_FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
