"""Does lisa-tiny learn as much from rows of three questions? The demo's training, seed by seed.

    python benchmarks/shared_demo.py [SCENES] [SEED ...] [--at-once N]
                                                       rows "demo" of benchmarks/shared.jsonl

All ways of a seed ask the same number of questions about the same scenes: on the demo's ("one
target"), whose questions are one target's in other words, and on "several targets", up to three a
scene. The features are there before the first training, so a way's processor time is its own.
Trainings of one seed take turns, or N of all seeds run at once, each on one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tables import rows_of

from advisor.tiny import tiny_cpu_plan
from trainer.data.formats.reasonseg import read_split
from trainer.reporter import Reporter
from trainer.run.feature_caches import prepare_caches

ROWS = Path(__file__).resolve().parent / "shared.jsonl"
SCENES = {  # kinds of questions
    "one target": ("negation",),
    "several targets": ("negation", "colour-clue", "shape-clue", "size-clue", "position-clue"),
}
SMALL_STEPS = ("effective_batch=4", "schedule.learning_rate=7e-4")
WAYS = {  # settings other than the demo's
    "one": (),
    "three": ("questions_per_picture=3",),
    "three, small steps": ("questions_per_picture=3", *SMALL_STEPS),
    "one, small steps": ("micro_batch=4", *SMALL_STEPS),
}
COUNTS = ("--train", "640", "--val", "120", "--test", "60")


def synthesise(folder: Path, seed: int, kinds: Iterable[str]) -> None:
    """The demo's data in `folder`, and its features."""
    command = [sys.executable, "-P", "-m", "trainer.cli", "synthesise", "data", *COUNTS]
    command += ["--seed", str(seed), *(part for kind in kinds for part in ("--kind", kind))]
    subprocess.run(command, cwd=folder, check=True)
    items = [item for split in ("train", "val") for item in read_split(folder / "data", split)]
    quiet = Reporter(lambda line: None, lambda *_: None)
    pictures = [item.image_path for item in items]
    prepare_caches(tiny_cpu_plan(), pictures, folder / "cache", Accelerator(cpu=True), quiet)


def trained(folder: Path, seed: int, *settings: str) -> dict[str, Any]:
    """One training in `folder`, which holds the data; what its row says."""
    plan = tiny_cpu_plan().override([*settings, f"seed={seed}"])
    name = "-".join(["run", *settings])
    (folder / f"{name}.json").write_text(plan.to_json())
    command = [sys.executable, "-P", "-m", "trainer.cli", "--plan", f"{name}.json", "--data-dir",
               "data", "--output-dir", name, "--cache-dir", "cache"]  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
    summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
    return {
        "kind": "demo", "date": datetime.date.today().isoformat(), "seed": seed,
        "steps": summary["steps"],
        "giou": round(summary["after"]["giou"], 4), "ciou": round(summary["after"]["ciou"], 4),
        "processor_seconds": round(used.ru_utime + used.ru_stime),
    }  # fmt: skip


def main() -> None:
    """Each seed in all ways, on the named scenes or on both; old rows of these go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="scenes and seeds")
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    named = [name for name in SCENES if name in arguments.names] or list(SCENES)
    seeds = [int(text) for text in arguments.names if text not in SCENES] or [0, 1, 2]
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def one(scenes: str, seed: int, way: str) -> dict[str, Any]:
        row = trained(folders[scenes, seed], seed, *WAYS[way]) | {"scenes": scenes, "way": way}
        print(json.dumps(row), flush=True)
        return row

    with ExitStack() as places:
        folders = {pair: Path(places.enter_context(tempfile.TemporaryDirectory()))
                   for pair in product(named, seeds)}  # fmt: skip
        for (scenes, seed), folder in folders.items():
            synthesise(folder, seed, SCENES[scenes])
        with ThreadPoolExecutor(arguments.at_once) as pool:
            made = list(pool.map(one, *zip(*product(named, seeds, WAYS), strict=True)))
    kept = [row for row in rows_of(ROWS) if row["kind"] != "demo"
            or (row["scenes"], row["seed"]) not in folders]  # fmt: skip
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept + made), encoding="utf-8")


if __name__ == "__main__":
    main()
