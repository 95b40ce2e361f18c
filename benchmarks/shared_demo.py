"""Does lisa-tiny learn as much from rows of three questions? The demo's training, seed by seed.

    python benchmarks/shared_demo.py [SEED ...]     rows of kind "demo" in benchmarks/shared.jsonl

The same scenes, steps and questions a step, one and three questions a row: on the demo's scenes,
whose questions are one target's in other words, and on scenes with up to three targets each. The
cache is filled by the first run, whose processor time therefore holds some seconds more.
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
COUNTS = ("--train", "640", "--val", "120", "--test", "60")


def synthesise(folder: Path, seed: int, kinds: Iterable[str]) -> None:
    """The demo's data in `folder`."""
    command = [sys.executable, "-P", "-m", "trainer.cli", "synthesise", "data", *COUNTS]
    command += ["--seed", str(seed), *(part for kind in kinds for part in ("--kind", kind))]
    subprocess.run(command, cwd=folder, check=True)


def trained(folder: Path, seed: int, setting: str) -> dict[str, Any]:
    """One training in `folder`, which holds the data; what its row says."""
    plan = tiny_cpu_plan().override([setting, f"seed={seed}"])
    (folder / "plan.json").write_text(plan.to_json())
    run = folder / f"run-{setting}"
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
    """Each seed, with one and with three questions a picture; old rows of a seed go."""
    seeds = [int(text) for text in sys.argv[1:]] or [0, 1, 2]
    kept = rows_of(ROWS)
    kept = [row for row in kept if row["kind"] != "demo" or row["seed"] not in seeds]
    for (scenes, kinds), seed in product(SCENES.items(), seeds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            synthesise(folder, seed, kinds)
            for questions in (1, 3):
                row = trained(folder, seed, f"questions_per_picture={questions}")
                kept.append(row | {"scenes": scenes, "questions_per_picture": questions})
                print(json.dumps(kept[-1]), flush=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
