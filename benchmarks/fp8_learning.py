"""Does lisa-tiny learn as much from products in FP8? The demo's training, seed by seed.

    python benchmarks/fp8_learning.py [SEED ...]     rows of kind "demo" in benchmarks/fp8.jsonl

On the CPU, which rounds as a card with FP8 does. The same scenes, steps and seeds with products in
the plan's dtype are in benchmarks/shared.jsonl already (benchmarks/shared_demo.py).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from shared_demo import SCENES, synthesise, trained

ROWS = Path(__file__).resolve().parent / "fp8.jsonl"


def main() -> None:
    """Each seed; its old rows go."""
    seeds = [int(text) for text in sys.argv[1:]] or [0, 1, 2]
    kept = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in kept if row.get("kind") != "demo" or row["seed"] not in seeds]
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            synthesise(folder, seed, SCENES["one target"])
            kept.append(trained(folder, seed, "products=fp8") | {"products": "fp8"})
        print(json.dumps(kept[-1]), flush=True)
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
