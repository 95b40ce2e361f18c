"""The main job on this machine: advice, data, cache, training, before/after, overlay.

    python benchmarks/demo.py [--seed N] [--folder DIR]

`make demo` runs it. Every step is a command that a user can type.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

TRAIN, VAL, TEST = 640, 120, 60
MODULES = {"lisa-advise": "advisor.cli", "lisa-train": "trainer.cli"}


def call(*command: str) -> None:
    """Show a command, then run it; a failure ends the demo."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    # By module: it also runs where the packages lie on the path and no script was installed.
    subprocess.run([sys.executable, "-m", MODULES[command[0]], *command[1:]], check=True)


def main() -> None:
    """Run the whole path and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    seed = str(arguments.seed)
    call("lisa-advise", "--model", "tiny")
    counts = ("--train", str(TRAIN), "--val", str(VAL), "--test", str(TEST))
    call("lisa-train", "synthesise", str(folder / "data"), *counts, "--seed", seed)
    call("lisa-train", "--check-data", str(folder / "data"))
    call(
        "lisa-train", "--auto", "--model", "tiny", "--data-dir", str(folder / "data"),
        "--output-dir", str(folder / "run"), "--cache-dir", str(folder / "cache"), "--seed", seed,
    )  # fmt: skip
    summary = json.loads((folder / "run" / "summary.json").read_text())
    print("\na question kind that lisa-tiny had never seen (negation), unseen scenes and wording")
    print("         gIoU   cIoU")
    for name, scores in (("before", "before"), ("best", "best"), ("last", "after")):
        print(f"{name:6}  {summary[scores]['giou']:.3f}  {summary[scores]['ciou']:.3f}")
    print(f"{time.monotonic() - started:.0f} s in all; look at {folder / 'run' / 'overlay.png'}")


if __name__ == "__main__":
    main()
