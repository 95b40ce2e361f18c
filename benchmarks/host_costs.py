"""What the CPU adds to a row: its sample read from disk, and in an evaluation its mask scored.

    python benchmarks/host_costs.py      one JSON line for each model; no GPU

One made-up picture of 1296 x 968 pixels, as ReasonSeg has them from ScanNet, with made-up features
in the cache, on one thread.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from profiles.plan import Plan
from trainer.data.feature_cache import FeatureCache, encoder_key
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet
from trainer.frame import Frame
from trainer.model.build import counting_tokenizer
from trainer.run.metrics import MaskScores

WIDTH, HEIGHT, TIMES = 1296, 968, 15


def write_data(root: Path) -> None:
    """One item with an outlined target."""
    folder = root / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / "one.jpg")
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    points = [[600 + 300 * np.cos(a), 480 + 300 * np.sin(a)] for a in angles]
    fields = {"text": ["What is this for?"], "is_sentence": True,
              "shapes": [{"label": "target", "points": points}]}  # fmt: skip
    (folder / "one.json").write_text(json.dumps(fields))


def median_seconds(work: Callable[[], object]) -> float:
    """Of several times; the first warms up."""
    seconds = []
    for _ in range(TIMES + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds[1:]), 4)


def measured(model: str, root: Path) -> dict[str, object]:
    """The row of a model."""
    plan = Plan.parse({"model": model, "weights": "random"})
    items = read_split(root, "val")
    caches = {}
    for encoder, facts in plan.profile.encoders.items():
        caches[encoder] = FeatureCache(root / "cache", encoder_key(plan, encoder, "made up"))
        features = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in facts.features.items()}
        caches[encoder].write(items[0].image_path, features)
    samples = SampleSet(items, plan, counting_tokenizer(plan), caches, training=False)
    truths, frame = samples[0].truths, Frame.of(plan.profile)
    low = torch.randn(1, frame.side // 4, frame.side // 4)

    def score() -> None:
        scores = MaskScores()
        for name, truth in truths.items():
            scores.add(name, frame.to_original(low, *truth.shape)[0].numpy() > 0, truth)

    return {"model": model, "sample_seconds": median_seconds(lambda: samples[0]),
            "scoring_seconds": median_seconds(score)}  # fmt: skip


def main() -> None:
    """Print a row for a model of each family."""
    torch.set_num_threads(1)
    for model in ("7b", "qwen3-vl-4b"):
        with tempfile.TemporaryDirectory() as place:
            write_data(Path(place))
            print(json.dumps(measured(model, Path(place))), flush=True)


if __name__ == "__main__":
    main()
