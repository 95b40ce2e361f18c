"""Forecast against measured: the fake rehearsal of every row in benchmarks/lean.jsonl.

    python benchmarks/forecast.py [NAME ...]      # docs/forecast.md's table; about 10 s a row

Each forecast is a process of its own (`trainer.rehearsal --fake`), without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "forecast.md"
BEGIN, END = "<!-- benchmarks/forecast.py -->", "<!-- /benchmarks/forecast.py -->"


def forecast(measurement: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The fake rehearsal of a measured plan, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(measurement["plan"]))
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "trainer.rehearsal", str(path), "--fake",
             "--compute-capability", "9.0", "--text-tokens", str(measurement["text_tokens"][1]),
             "--masks", str(measurement["masks"])],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), time.monotonic() - started


def main() -> None:
    """Forecast, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"])
    arguments = parser.parse_args()
    lines = (ROOT / "benchmarks" / "lean.jsonl").read_text().splitlines()
    table = ["| row | measured | forecast | error | peak in | seconds |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    errors: dict[bool, list[float]] = {False: [], True: []}
    for record in map(json.loads, lines):
        m = record["measurement"]
        if m["verdict"] != "FITS" or not any(fnmatch(record["name"], n) for n in arguments.names):
            continue
        found, seconds = forecast(m)
        error = 100 * (found["peak_allocated_bytes"] / m["peak_allocated_bytes"] - 1)
        compiled = m["plan"]["compile"]
        errors[compiled].append(error)
        phase = max(found["phases"], key=lambda name: found["phases"][name])
        measured, expected = (r["peak_allocated_bytes"] / 2**20 for r in (m, found))
        mark = " (compiled)" if compiled else ""
        table.append(f"| {record['name']}{mark} | {measured:.0f} | {expected:.0f} | {error:+.2f} % "
                     f"| {phase} | {seconds:.0f} |")  # fmt: skip
        print(table[-1], flush=True)
    for compiled, title in ((False, "plain"), (True, "compiled")):
        if errors[compiled]:
            sizes = [abs(error) for error in errors[compiled]]
            table.append(f"\n{title}: {len(sizes)} rows, median |error| "
                         f"{statistics.median(sizes):.2f} %, worst {max(sizes):.2f} %, worst "
                         f"under-prediction {max(0.0, -min(errors[compiled])):.2f} %")  # fmt: skip
            print(table[-1])
    if arguments.names == ["*"]:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        DOCS.write_text(before + "\n".join([BEGIN, *table, END]) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
