"""The training loop beside the rehearsal of its step: seconds from update to update.

    python benchmarks/real_loop.py [K ...]      one JSON line for each number of questions; a GPU

LISA 7B with random weights trains on made-up pictures whose questions are all as long, read, cut
and collated by data workers, features from the cache. The time between updates counts, whatever it
went into. The rehearsal has rows of the same length.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from profiles.environment import ALLOCATOR_VARIABLES
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
PICTURES, LINKS, STEPS = 12, 60, 40  # items about each picture: an epoch outlasts the prefetching
ROWS = {1: 10, 3: 9, 6: 6}  # a micro-batch, which is the effective batch
QUESTION = "Which of the things in this picture would somebody of the house have used here lately"


def plan_of(questions: int) -> Plan:
    """The 8 GB card's plan of benchmarks/lean.py."""
    rows = ROWS[questions]
    return Plan.parse({
        "model": "7b", "weights": "random", "device": "cuda", "checkpointed_layers": "all",
        "host_embeddings": True, "compile": True, "questions_per_picture": questions,
        "micro_batch": rows, "accumulation": 1, "workers": 4,
        "schedule": {"epochs": STEPS * rows * questions // (PICTURES * LINKS) + 2},
    })  # fmt: skip


def write_data(root: Path) -> None:
    """Pictures of noise, each with several texts of the same length."""
    random = np.random.default_rng(0)
    for split, count in (("train", PICTURES), ("val", 1)):
        folder = root / "ReasonSeg" / split
        folder.mkdir(parents=True)
        for number, link in product(range(count), range(LINKS)):
            place = folder / f"{split}-{number}-{link}"
            if link:
                os.link(folder / f"{split}-{number}-0.jpg", place.with_suffix(".jpg"))
            else:
                noise = random.integers(0, 255, (480, 640, 3), np.uint8)
                Image.fromarray(noise).save(place.with_suffix(".jpg"))
            box = [[50, 50], [300, 50], [300, 300], [50, 300]]
            texts = [f"{QUESTION} {word}?" for word in "abcdefgh"]
            fields = {"text": texts, "is_sentence": True,
                      "shapes": [{"label": "target", "points": box}]}  # fmt: skip
            place.with_suffix(".json").write_text(json.dumps(fields))


def looped(plan: Plan, data: Path, folder: Path) -> tuple[float, float, int]:
    """Seconds from update to update and of the step itself, medians; the rows' text tokens."""
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.micro_batches import MicroBatches
    from trainer.reporter import Reporter
    from trainer.run.run import Run

    moments: list[float] = []
    steps: list[float] = []
    silent = Reporter(lambda text: None, lambda what, done, total: None)
    train, val = read_split(data, "train"), read_split(data, "val")
    run = Run(plan, train, val, folder, folder / "cache", silent)
    rows = [run.train_set.encoded(v) for v in next(MicroBatches(run.train_set, plan).of_epoch(0))]
    append = run.records.append

    def timed(row: dict[str, Any]) -> None:
        append(row)
        if "loss" in row:
            moments.append(time.perf_counter())
            steps.append(row["step_seconds"])
            if len(moments) > STEPS:
                run.stop.asked = True

    run.records.append = timed  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        run.train()
    apart = [later - earlier for earlier, later in pairwise(moments)]
    text = max(row.text_tokens for row in rows)
    return statistics.median(apart[5:]), statistics.median(steps[5:]), text


def rehearsed(plan: Plan, text: int, folder: Path) -> dict[str, Any]:
    """The rehearsal's measurement, in a process of its own."""
    path = folder / "plan.json"
    path.write_text(plan.to_json())
    command = [sys.executable, "-m", "trainer.rehearse", str(path), "--text-tokens", str(text),
               "--cap-gib", "7.3"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """One number of questions in this process; several in one each."""
    counts = [int(text) for text in sys.argv[1:]] or list(ROWS)
    if len(counts) > 1:
        for count in counts:
            subprocess.run([sys.executable, __file__, str(count)], check=True)
        return
    (questions,) = counts
    plan = plan_of(questions)
    os.environ.update(dict.fromkeys(ALLOCATOR_VARIABLES, plan.allocator))
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder / "data")
        torch.cuda.set_per_process_memory_fraction(7.3 * 2**30 / total)
        seconds, step, text = looped(plan, folder / "data", folder)
        torch.cuda.empty_cache()
        said = rehearsed(plan, text, folder)
    row = {
        "questions_per_picture": questions, "rows": plan.micro_batch, "text_tokens": text,
        "loop_seconds": round(seconds, 4), "loop_step_seconds": step,
        "rehearsal_seconds": said["step_seconds"],
        "loop_questions_per_second": round(plan.effective_batch / seconds, 2),
        "gpu": torch.cuda.get_device_name(), "versions": said["versions"],
    }  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
