"""What building the feature caches takes on this GPU: each frozen encoder alone, one picture.

python benchmarks/encoders.py [--out FILE]     one JSON line an encoder, random weights
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from profiles.plan import Plan
from trainer.hardware import versions
from trainer.model.build import FrozenEncoder, read_tokenizer, skeleton
from trainer.model.weights import weight_source


def main() -> None:
    """Measure both encoders of the 7B plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    out = parser.parse_args().out
    plan = Plan.parse({"model": "7b", "weights": "random", "device": "cuda"})
    cuda = torch.device("cuda", 0)
    for encoder, facts in plan.profile.encoders.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = skeleton(plan.profile, read_tokenizer(plan))
        part = FrozenEncoder(model, plan, encoder, cuda, weight_source(plan))
        static = torch.cuda.memory_allocated()
        part({name: torch.randn(shape) for name, shape in facts.pixels.items()})
        row = {
            "encoder": encoder,
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
