"""What building the feature caches takes on this GPU: each frozen encoder alone, one picture.

python benchmarks/encoders.py [MODEL ...] [--out FILE]   one JSON line an encoder, random weights
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from profiles.plan import Plan
from trainer.hardware import versions
from trainer.model.build import FrozenEncoder, read_tokenizer, skeleton
from trainer.model.weights import weight_source

WARM_UP, PICTURES = 5, 40  # the median of three wandered: SAM 2 took 26 to 43 ms


def main() -> None:
    """Measure both encoders of the named models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["7b"])
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    arguments = parser.parse_args()
    for model in arguments.models:
        measure(Plan.parse({"model": model, "weights": "random", "device": "cuda"}), arguments.out)


def measure(plan: Plan, out: Path) -> None:
    """Append a row for each encoder: bytes, and the seconds of one picture."""
    cuda = torch.device("cuda", 0)
    for encoder, facts in plan.profile.encoders.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = skeleton(plan.profile, read_tokenizer(plan))
        part = FrozenEncoder(model, plan, encoder, cuda, weight_source(plan))
        static = torch.cuda.memory_allocated()
        pixels = {name: torch.randn(shape) for name, shape in facts.pixels.items()}
        pixels |= {name: torch.tensor([row]) for name, row in facts.numbers.items()}
        seconds = []
        for _ in range(WARM_UP + PICTURES):
            torch.cuda.synchronize()
            started = time.perf_counter()
            part(pixels)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        row = {
            "model": plan.model,
            "encoder": encoder,
            "seconds": round(statistics.median(seconds[WARM_UP:]), 4),
            "least_and_most": [round(most(seconds[WARM_UP:]), 4) for most in (min, max)],
            "cached_bytes": facts.cached_bytes,
            "static_bytes": static,
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "gpu": torch.cuda.get_device_name(),
            "versions": versions(),
        }
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        del part


if __name__ == "__main__":
    main()
