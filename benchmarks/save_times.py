"""A step and a save of lisa-tiny's training, by this tree's code and by an older one's.

    git archive COMMIT --prefix=old/ | tar x -C ..
    python benchmarks/save_times.py ../old [--rows FILE]

Issue by issue a save has become safer: forced to disk, sealed, put into place by renames. The same
scenes, plan and seed, one tree after the other, three times each; idle cores. Rows go to
benchmarks/save_times.jsonl, from which `tools/write_docs.py measured` takes docs/recovery.md's
sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "save_times.jsonl"
TIMES = 3
PLANNED = """
try:
    from advisor.tiny import tiny_cpu_plan
except ImportError:
    from advisor.choose import tiny_cpu_plan
print(tiny_cpu_plan().override(["schedule.epochs=2"]).to_json())
"""
TRAINED = """
import importlib, json, runpy, sys, time
module, saves = importlib.import_module(sys.argv.pop(1)), sys.argv.pop(1)
save, seconds = module.save, []
def timed(*given, **named):
    began = time.perf_counter()
    save(*given, **named)
    seconds.append(round(time.perf_counter() - began, 4))
module.save = timed
try:
    runpy.run_module("trainer.cli", run_name="__main__", alter_sys=True)
finally:
    open(saves, "w").write(json.dumps(seconds))
"""


def trained(tree: Path, folder: Path) -> dict[str, float]:
    """Medians of one training by the tree's code, in seconds."""
    moved = (tree / "trainer" / "run").is_dir()
    module = "trainer.run.checkpoint" if moved else "trainer.checkpoint"
    command = [sys.executable, "-c", TRAINED, module, str(folder / "saves.json"), "--plan",
               "plan.json", "--data-dir", "data", "--output-dir", str(folder / "run"),
               "--cache-dir", str(folder / "cache"), "--save-steps", "1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(tree)}
    subprocess.run(command, cwd=folder.parent, env=environment, check=True, capture_output=True)
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [row["step_seconds"] for row in rows if "step_seconds" in row]
    saves = json.loads((folder / "saves.json").read_text())
    return {"steps": len(steps), "step_seconds": statistics.median(steps),
            "saves": len(saves), "save_seconds": statistics.median(saves)}  # fmt: skip


def main() -> None:
    """Rows of both trees in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("--rows", type=Path, default=ROWS_FILE)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, asked.rows.open("a", encoding="utf-8") as rows:
        base = Path(place)
        subprocess.run([sys.executable, "-m", "trainer.cli", "synthesise", "data", "--train", "64",
                        "--val", "8", "--test", "8"], cwd=base, check=True)  # fmt: skip
        plan = subprocess.run([sys.executable, "-c", PLANNED], cwd=base, check=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(asked.old)},
                              capture_output=True)  # fmt: skip
        (base / "plan.json").write_text(plan.stdout)
        for turn in range(TIMES):
            for name, tree in (("old", asked.old), ("new", ROOT)):
                folder = base / f"{name}-{turn}"
                folder.mkdir()
                row = {"tree": name} | trained(tree, folder)
                print(json.dumps(row), file=rows, flush=True)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
