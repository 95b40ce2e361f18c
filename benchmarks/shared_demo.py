"""Does lisa-tiny learn as much from rows of three questions? The demo's training, seed by seed.

    python benchmarks/shared_demo.py [SCENES] [SEED ...]    rows "demo" of benchmarks/shared.jsonl

The same scenes, steps and questions a step, one and three questions a row: on the demo's scenes
("one target"), whose questions are one target's in other words, and on "several targets", up to
three a scene. On the demo's, three questions a row are also tried for as long as one takes: the
time saved goes into more epochs. The cache is filled by the first run of a seed, whose processor
time therefore holds some seconds more.
"""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from tables import rows_of

from advisor.tiny import tiny_cpu_plan

ROWS = Path(__file__).resolve().parent / "shared.jsonl"
SCENES = {  # kinds of questions
    "one target": ("negation",),
    "several targets": ("negation", "colour-clue", "shape-clue", "size-clue", "position-clue"),
}
EPOCHS, SAME_TIME = 3, 4  # the demo's, and of three questions a row in about the time of one
WAYS = {  # questions a row, epochs
    "one target": [(1, EPOCHS), (3, EPOCHS), (3, SAME_TIME)],
    "several targets": [(1, EPOCHS), (3, EPOCHS)],
}
COUNTS = ("--train", "640", "--val", "120", "--test", "60")


def synthesise(folder: Path, seed: int, kinds: Iterable[str]) -> None:
    """The demo's data in `folder`."""
    command = [sys.executable, "-P", "-m", "trainer.cli", "synthesise", "data", *COUNTS]
    command += ["--seed", str(seed), *(part for kind in kinds for part in ("--kind", kind))]
    subprocess.run(command, cwd=folder, check=True)


def trained(folder: Path, seed: int, *settings: str) -> dict[str, Any]:
    """One training in `folder`, which holds the data; what its row says."""
    plan = tiny_cpu_plan().override([*settings, f"seed={seed}"])
    (folder / "plan.json").write_text(plan.to_json())
    run = folder / f"run-{'-'.join(settings)}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-P", "-m", "trainer.cli", "--plan", "plan.json", "--data-dir",
               "data", "--output-dir", str(run), "--cache-dir", "cache"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "kind": "demo", "date": datetime.date.today().isoformat(), "seed": seed,
        "steps": summary["steps"],
        "giou": round(summary["after"]["giou"], 4), "ciou": round(summary["after"]["ciou"], 4),
        "processor_seconds": round(spent),
    }  # fmt: skip


def main() -> None:
    """Each seed in all ways, on the named scenes or on both; old rows of these go."""
    named = [name for name in SCENES if name in sys.argv] or list(SCENES)
    seeds = [int(text) for text in sys.argv[1:] if text not in SCENES] or [0, 1, 2]
    made = []
    for scenes, seed in product(named, seeds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            synthesise(folder, seed, SCENES[scenes])
            for questions, epochs in WAYS[scenes]:
                row = trained(folder, seed, f"questions_per_picture={questions}",
                              f"schedule.epochs={epochs}")  # fmt: skip
                made.append(row | {"scenes": scenes, "questions_per_picture": questions,
                                   "epochs": epochs})  # fmt: skip
                print(json.dumps(made[-1]), flush=True)
    kept = [row for row in rows_of(ROWS) if row["kind"] != "demo"
            or (row["scenes"], row["seed"]) not in product(named, seeds)]  # fmt: skip
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept + made), encoding="utf-8")


if __name__ == "__main__":
    main()
