"""What building the feature caches takes on this GPU: each frozen encoder alone, one picture.

python benchmarks/encoders.py [MODEL ...] [--out FILE]   one JSON line an encoder, random weights

A picture's time is from its pixels in host memory to its features there, as a cache is built. Most
encoders wait for the CPU, whose speed may change by half within a minute: so they take turns, and
each row has the time that a loop of Python alone took beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from profiles.plan import Plan
from profiles.settings import Encoder
from trainer.hardware import versions
from trainer.model.build import FrozenEncoder, read_tokenizer, skeleton
from trainer.model.weights import weight_source

MODELS = ("7b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b")
TURNS, WARM_UP, PICTURES = 3, 5, 15
LOOP = 300_000  # rounds


def main() -> None:
    """Measure both encoders of the named models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    arguments = parser.parse_args()
    plans = [Plan.parse({"model": model, "weights": "random", "device": "cuda"})
             for model in arguments.models]  # fmt: skip
    facts: dict[tuple[str, Encoder], dict[str, Any]] = {}
    times: dict[tuple[str, Encoder], list[dict[str, float]]] = defaultdict(list)
    for _ in range(TURNS):
        for plan in plans:
            for encoder in plan.profile.encoders:
                found, pictures = turn(plan, encoder)
                facts[plan.model, encoder] = found
                times[plan.model, encoder] += pictures
    with arguments.out.open("a") as file:
        for (model, encoder), pictures in times.items():
            row = {"model": model, "encoder": encoder} | summary(pictures) | facts[model, encoder]
            file.write(json.dumps(row) + "\n")


def turn(plan: Plan, encoder: Encoder) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """An encoder's bytes, and the times of some pictures."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    facts, cuda = plan.profile.encoders[encoder], torch.device("cuda", 0)
    model = skeleton(plan.profile, read_tokenizer(plan))
    part = FrozenEncoder(model, plan, encoder, cuda, weight_source(plan))
    static = torch.cuda.memory_allocated()
    pixels = {name: torch.randn(shape) for name, shape in facts.pixels.items()}
    pixels |= {name: torch.tensor([row]) for name, row in facts.numbers.items()}
    times = [timed(part, pixels) for _ in range(WARM_UP + PICTURES)][WARM_UP:]
    return {
        "cached_bytes": facts.cached_bytes,
        "static_bytes": static,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "gpu": torch.cuda.get_device_name(),
        "versions": versions(),
    }, times


def timed(part: FrozenEncoder, pixels: dict[str, torch.Tensor]) -> dict[str, float]:
    """Seconds of a picture, until its last kernel is launched, and of a loop of Python after it."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    features = part(pixels)
    launched = time.perf_counter()
    kept = {name: value.contiguous().cpu() for name, value in features.items()}
    ended = time.perf_counter()
    del kept
    for _ in range(LOOP):
        pass
    looped = time.perf_counter() - ended
    return {"seconds": ended - started, "launched_seconds": launched - started,
            "loop_seconds": looped}  # fmt: skip


def summary(pictures: list[dict[str, float]]) -> dict[str, Any]:
    """The medians of all turns, and the least and the most."""
    seconds = [picture["seconds"] for picture in pictures]
    return {
        **{n: round(statistics.median(p[n] for p in pictures), 5) for n in pictures[0]},
        "least_and_most": [round(most(seconds), 4) for most in (min, max)],
    }


if __name__ == "__main__":
    main()
