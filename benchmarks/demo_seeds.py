"""What `make demo` reaches, seed after seed: a row each, and the table in docs/lisa-tiny.md.

    python benchmarks/demo_seeds.py [--seeds 0 1 2]    # minutes a seed

Each seed has a fresh folder: new scenes, new cache, new run. A row that misses the target stays.
The first seed's printed output and overlay become docs/demo.txt and docs/demo.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "demo_seeds.jsonl"


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """One whole demo in `folder`; its row. The printed output is in `folder / demo.txt`."""
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--seed", str(seed)]
    started = time.monotonic()
    # Run from the folder itself, so that the printed paths are the short ones of `make demo`.
    with (folder / "demo.txt").open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit((folder / "demo.txt").read_text(encoding="utf-8"))
    seconds = time.monotonic() - started
    run = folder / "demo" / "run"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "giou_before": round(summary["before"]["giou"], 4),
        "giou_after": round(summary["after"]["giou"], 4),
        "ciou_before": round(summary["before"]["ciou"], 4),
        "ciou_after": round(summary["after"]["ciou"], 4),
        "pictures": summary["after"]["images"],
        "steps": summary["steps"],
        "epochs": plan["schedule"]["epochs"],
        "device": plan["device"],
        "seconds": round(seconds),
        "training_seconds": round(summary["seconds"]),
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "versions": json.loads((run / "versions.json").read_text(encoding="utf-8")),
    }


def cpu_model() -> str:
    """The processor's name, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(sheet: Path) -> None:
    """Put a contact sheet into the docs, in 256 colours: a third of the bytes."""
    from PIL import Image

    picture = Image.open(sheet).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(ROOT / "docs" / "demo.png", optimize=True)


def main() -> None:
    """Run the seeds that were named, record them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            row = run_seed(seed, folder)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            if seed == seeds[0]:
                shutil.copy(folder / "demo.txt", ROOT / "docs" / "demo.txt")
                show(folder / "demo" / "run" / "overlay.png")
    subprocess.run([sys.executable, str(ROOT / "tools/write_docs.py"), "tables"], check=True)


if __name__ == "__main__":
    main()
