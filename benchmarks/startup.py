"""Cost of starting a command: CPU seconds on top of bare Python, and wall time.

    python benchmarks/startup.py [--repeats N]

Targets: help under 0.5 s of CPU on top of bare Python, an answer from what is shipped under 1 s of
wall time, a search for adapters that are not in it, on data that was not seen, under 20 s (once,
with an empty cache). Exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP_CPU_SECONDS, ANSWER_WALL_SECONDS, SEARCH_WALL_SECONDS = 0.5, 1.0, 20.0
HELP = (("lisa-advise", "--help"), ("lisa-train", "--help"), ("lisa-segment", "--help"))
ANSWER = ("lisa-advise", "--model", "7b", "--vram", "8GiB")
DATA = str(Path(__file__).resolve().parents[1] / "tests" / "photos")
SEARCH = ("lisa-advise", "--gpu", "RTX 3060", "--lora-r", "32", "--data-dir", DATA)


def cost(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one call, its children included."""
    before, started = os.times(), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.monotonic() - started, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    cpu = after.children_user + after.children_system
    return cpu - before.children_user - before.children_system, wall


def main() -> None:
    """Measure, print the table, and say whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats

    def median(command: list[str]) -> tuple[float, float]:
        cost(command)  # the first call reads the files from the disk
        cpu, wall = zip(*(cost(command) for _ in range(repeats)), strict=True)
        return statistics.median(cpu), statistics.median(wall)

    bare, bare_wall = median([sys.executable, "-c", "pass"])
    print(f"medians of {repeats}; bare Python: CPU {bare:.2f} s, wall {bare_wall:.2f} s\n")
    print("| command | CPU over bare Python, s | wall, s | target |\n|---|---|---|---|")
    missed = False
    for name, *arguments in (*HELP, ANSWER):
        cpu, wall = median([str(Path(sys.executable).with_name(name)), *arguments])
        if "--help" in arguments:
            ok, target = cpu - bare < HELP_CPU_SECONDS, f"CPU < {HELP_CPU_SECONDS}"
        else:
            ok, target = wall < ANSWER_WALL_SECONDS, f"wall < {ANSWER_WALL_SECONDS}"
        missed |= not ok
        shown, verdict = " ".join((name, *arguments)), "met" if ok else "MISSED"
        print(f"| `{shown}` | {cpu - bare:.2f} | {wall:.2f} | {target}: {verdict} |")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        name, *arguments = SEARCH
        cpu, wall = cost([str(Path(sys.executable).with_name(name)), *arguments])
    missed |= wall >= SEARCH_WALL_SECONDS
    shown, verdict = "with --lora-r 32 and new data", "MISSED" if missed else "met"
    print(f"| {shown} | {cpu - bare:.2f} | {wall:.2f} | wall < {SEARCH_WALL_SECONDS}: {verdict} |")
    sys.exit(missed)


if __name__ == "__main__":
    main()
