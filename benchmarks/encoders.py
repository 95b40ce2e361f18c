"""What building the feature caches takes on this GPU: each frozen encoder alone, one picture.

python benchmarks/encoders.py [MODEL ...] [--out FILE]   one JSON line an encoder, random weights

A picture's time is from its pixels in host memory to its features there, as a cache is built. Each
encoder has a process of its own: what one leaves behind changes the next one's time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from profiles.plan import Plan
from profiles.settings import Encoder
from trainer.hardware import versions
from trainer.model.build import FrozenEncoder, read_tokenizer, skeleton
from trainer.model.weights import weight_source

WARM_UP, PICTURES = 20, 60


def main() -> None:
    """Measure both encoders of the named models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["7b"])
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    arguments = parser.parse_args()
    forked = multiprocessing.get_context("fork")  # libraries are imported once, CUDA in each
    for model in arguments.models:
        plan = Plan.parse({"model": model, "weights": "random", "device": "cuda"})
        for encoder in plan.profile.encoders:
            child = forked.Process(target=measure, args=(plan, encoder, arguments.out))
            child.start()
            child.join()


def measure(plan: Plan, encoder: Encoder, out: Path) -> None:
    """Append an encoder's row: bytes, and the seconds of one picture."""
    facts, cuda = plan.profile.encoders[encoder], torch.device("cuda", 0)
    model = skeleton(plan.profile, read_tokenizer(plan))
    part = FrozenEncoder(model, plan, encoder, cuda, weight_source(plan))
    static = torch.cuda.memory_allocated()
    pixels = {name: torch.randn(shape) for name, shape in facts.pixels.items()}
    pixels |= {name: torch.tensor([row]) for name, row in facts.numbers.items()}
    times = [timed(part, pixels) for _ in range(WARM_UP + PICTURES)][WARM_UP:]
    seconds = [one["seconds"] for one in times]
    row = {
        "model": plan.model,
        "encoder": encoder,
        **{name: round(statistics.median(t[name] for t in times), 5) for name in times[0]},
        "least_and_most": [round(most(seconds), 4) for most in (min, max)],
        "cached_bytes": facts.cached_bytes,
        "static_bytes": static,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "gpu": torch.cuda.get_device_name(),
        "versions": versions(),
    }
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def timed(part: FrozenEncoder, pixels: dict[str, Any]) -> dict[str, float]:
    """Seconds of a picture, until its last kernel is launched, and of the card from first to last.

    The card's include the pixels' copy.
    """
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    first.record()
    features = part(pixels)
    last.record()
    launched = time.perf_counter()
    _ = {name: value.contiguous().cpu() for name, value in features.items()}
    ended = time.perf_counter()
    return {"seconds": ended - started, "launched_seconds": launched - started,
            "card_seconds": first.elapsed_time(last) / 1e3}  # fmt: skip


if __name__ == "__main__":
    main()
