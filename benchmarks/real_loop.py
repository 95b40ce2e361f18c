"""The training loop beside the rehearsal of its step: seconds from update to update.

    python benchmarks/real_loop.py [K ...]      one JSON line for each number of questions; a GPU

LISA 7B with random weights trains on made-up pictures whose questions are all as long, read, cut
and collated by data workers, features from the cache. The time between updates counts, whatever it
went into. Every few steps the rehearsal's step has its turn, on the same model, with rows of the
same length: minutes apart CPU and card differ by more than loop and rehearsal do.
"""

from __future__ import annotations

import datetime
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
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from profiles.environment import ALLOCATOR_VARIABLES
from profiles.plan import Plan

if TYPE_CHECKING:
    from trainer.run.run import Run

PICTURES, LINKS = 12, 60  # items about each picture: an epoch outlasts the prefetching
TURNS, STEPS = 4, 10  # of the loop and of the rehearsal each; the first turn warms up
ROWS = {1: 10, 3: 9, 6: 6}  # a micro-batch, which is the effective batch
QUESTION = "Which of the things in this picture would somebody of the house have used here lately"


def plan_of(questions: int) -> Plan:
    """The 8 GB card's plan of benchmarks/lean.py."""
    rows = ROWS[questions]
    return Plan.parse({
        "model": "7b", "weights": "random", "device": "cuda", "checkpointed_layers": "all",
        "host_embeddings": True, "compile": True, "questions_per_picture": questions,
        "micro_batch": rows, "accumulation": 1, "workers": 4,
        "schedule": {"epochs": TURNS * STEPS * rows * questions // (PICTURES * LINKS) + 2},
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


class Turns:
    """Steps of a run's loop, and in turns with them steps of its rehearsal."""

    def __init__(self, run: Run) -> None:
        from trainer.data.micro_batches import MicroBatches
        from trainer.rehearse.dummy_batch import MadeUp

        self.run, self.plan, self.append = run, run.plan, run.records.append
        visits = next(MicroBatches(run.train_set, run.plan).of_epoch(0))
        self.text = max(run.train_set.encoded(visit).text_tokens for visit in visits)
        made = MadeUp(run.plan, run.tokenizer, (self.text, self.text),
                      run.plan.questions_per_picture).step()  # fmt: skip
        self.made = [batch.pin_memory() for batch in made]
        self.moments: list[float] = []  # of updates in this turn
        self.apart: list[list[float]] = []  # of each turn
        self.steps: list[list[float]] = []
        self.rehearsed: list[list[float]] = []
        self.own: list[float] = []

    def record(self, row: dict[str, Any]) -> None:
        """In the place of the run's own: the rehearsal has its turn after so many steps."""
        self.append(row)
        if "loss" not in row:
            return
        self.moments.append(time.perf_counter())
        self.own.append(row["step_seconds"])
        if len(self.moments) == STEPS:
            self.apart.append([later - earlier for earlier, later in pairwise(self.moments)])
            self.steps.append(self.own[1:])
            self.rehearsed.append([self._rehearse() for _ in range(STEPS)][1:])
            self.moments, self.own = [], []
            self.run.stop.asked = len(self.apart) == TURNS

    def _rehearse(self) -> float:
        """Seconds of a step, as a rehearsal times it."""
        import torch

        from trainer.step import training_step

        run = self.run
        torch.cuda.synchronize()
        started = time.perf_counter()
        training_step(run.wrapped, self.made, run.optimizer, self.plan, run.accelerator)
        torch.cuda.synchronize()
        return time.perf_counter() - started


def looped(plan: Plan, data: Path, folder: Path) -> Turns:
    """A run that was stopped after all turns."""
    from trainer.data.formats.reasonseg import read_split
    from trainer.reporter import Reporter
    from trainer.run.run import Run

    silent = Reporter(lambda text: None, lambda what, done, total: None)
    train, val = read_split(data, "train"), read_split(data, "val")
    turns = Turns(Run(plan, train, val, folder, folder / "cache", silent))
    turns.run.records.append = turns.record  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        turns.run.train()
    return turns


def measured(turns: Turns) -> dict[str, Any]:
    """Medians of all turns after the first, and how far the loop was off in each."""
    loop, own, rehearsal = (
        [statistics.median(turn) for turn in one[1:]]
        for one in (turns.apart, turns.steps, turns.rehearsed)
    )
    middle = statistics.median(loop)
    return {
        "text_tokens": turns.text, "loop_seconds": round(middle, 4),
        "loop_step_seconds": round(statistics.median(own), 4),
        "rehearsal_seconds": round(statistics.median(rehearsal), 4),
        "off_in_turns": [round(a / b - 1, 4) for a, b in zip(loop, rehearsal, strict=True)],
        "loop_questions_per_second": round(turns.plan.effective_batch / middle, 2),
    }  # fmt: skip


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

    from trainer.hardware import versions

    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder / "data")
        torch.cuda.set_per_process_memory_fraction(7.3 * 2**30 / total)
        found = measured(looped(plan, folder / "data", folder))
    row = {
        "kind": "loop", "date": datetime.date.today().isoformat(), "rested": False,
        "questions_per_picture": questions, "rows": plan.micro_batch, **found,
        "gpu": torch.cuda.get_device_name(), "versions": versions(),
    }  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
