"""Time that a large table of tested configurations adds to `lisa-advise`.

    python benchmarks/large_table.py [ROWS ...] [--keep FILE]

Rows are the shipped ones under names of their own, 1.5 KB each. Wall seconds, the best of three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from profiles.tested import TABLE_NAME, append_all, shipped_table  # noqa: E402

COMMAND = ["--model", "7b", "--vram", "8GiB"]


def write_table(path: Path, count: int) -> None:
    """A user's table of so many measured rows."""
    measured = [row for row in shipped_table().rows if row.source != "seed"]
    rows = (
        row.model_copy(update={"id": f"mine-{number}", "source": "user"})
        for number, row in enumerate(islice(cycle(measured), count))
    )
    append_all(rows, path)


def seconds(data_home: Path) -> float:
    """The best of three calls with that user data folder."""
    environment = os.environ | {"XDG_DATA_HOME": str(data_home), "PYTHONPATH": str(ROOT)}
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        command = [sys.executable, "-m", "advisor.cli", *COMMAND]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    """Measure each size, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    found = []
    with tempfile.TemporaryDirectory() as name:
        none = seconds(Path(name))
        print(f"without a table: {none:.2f} s\n\n| rows | seconds more |\n|---|---|")
        for count in asked.rows:
            home = Path(name) / str(count)
            write_table(home / "lisa-preflight" / TABLE_NAME, count)
            more = seconds(home) - none
            print(f"| {count} | {more:.2f} |", flush=True)
            found.append({"rows": count, "seconds_more": round(more, 2),
                          "seconds_without": round(none, 2), "machine": machine})  # fmt: skip
    if asked.keep is not None:
        with asked.keep.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in found)


if __name__ == "__main__":
    main()
