"""PEFT's adapters against the earlier ones: memory and speed of 7B in NF4 on one GPU.

    python benchmarks/adapters.py [--tree DIR] [--pefts-forward] [--out FILE]

--tree DIR runs another state of this project's code, such as the last one before PEFT:
`git archive ae9dab2 trainer profiles | tar -x -C DIR`. --pefts-forward has PEFT's own forward pass
in the place of `AdaptedLinear`'s. Two rows each, plain and compiled; a minute in all on an H100.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lean

from profiles.plan import Plan

ROWS = ("speed-b8", "speed-compiled-b8-k32")
OURS = ["-m", "trainer.rehearse"]
BEFORE = ["-m", "trainer.rehearsal"]  # the name of it in the trees before PEFT
PEFTS = ["-c", "import runpy; from trainer.model import adapters as a; "
         "a.AdaptedLinear.forward = a.peft_lora.Linear.forward; "
         "runpy.run_module('trainer.rehearse', run_name='__main__')"]  # fmt: skip


def path_of(tree: Path) -> str:
    """The tree before whatever this process finds its packages in."""
    return os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])


def measured(row: lean.Row, tree: Path, start: list[str]) -> dict[str, Any]:
    """One row in a fresh process of the tree's code: bytes at the peak, and speed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(Plan.parse(lean.BASE | row.settings).to_json())
        command = [sys.executable, *start, str(path), "--text-tokens", row.text]
        command += ["--steps", str(row.steps), "--cap-gib", str(lean.CARDS[row.card])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tree,
                              env=os.environ | {"PYTHONPATH": path_of(tree)})  # fmt: skip
    found: dict[str, Any] = {"name": row.name, "tree": tree.name, "pefts_forward": start == PEFTS,
                             "wall_seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    if done.returncode:
        return found | {"failed": done.stderr.strip().splitlines()[-12:]}
    told = json.loads(done.stdout)
    names = ("gpu", "verdict", "error", "load_peak_bytes", "static_bytes", "peak_allocated_bytes",
             "peak_reserved_bytes", "step_seconds", "samples_per_second", "versions")  # fmt: skip
    return found | {name: told[name] for name in names}


def main() -> None:
    """Measure the rows and print them, one JSON document a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--pefts-forward", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for row in lean.all_rows():
        if row.name in ROWS:
            start = PEFTS if arguments.pefts_forward else OURS
            if (arguments.tree / "trainer" / "rehearsal.py").exists():
                start = BEFORE
            line = json.dumps(measured(row, arguments.tree.resolve(), start))
            print(line, flush=True)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
