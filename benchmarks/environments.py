"""Two environments side by side: which version takes more memory on which tested row.

    python benchmarks/environments.py OTHER/bin/python    a row in benchmarks/environments.jsonl
    python benchmarks/environments.py --lowest            the lowest versions that are allowed
    python benchmarks/environments.py --table             writes docs/versions.md

Each row's step is rehearsed without a GPU in both, by the same code of this checkout, and the peaks
of the tensors are compared, bit for bit the same step with other libraries. --lowest installs these
into a folder that comes first on Python's path, except torch (gigabytes).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crash_scenes import ROOT
from tables import put
from versions import DOCS, SHOWN, install_lowest

from profiles.measurement import Measurement
from profiles.sizes import MIB
from profiles.tested import shipped_table

ROWS_FILE = ROOT / "benchmarks" / "environments.jsonl"
BEGIN, END = "<!-- benchmarks/environments.py -->", "<!-- /benchmarks/environments.py -->"
# Of each storage, each family, a paged optimizer, compiled layers, and layers on the host.
ROWS = ("lean-7b-b1-host", "lean-7b-b1-paged", "lean-7b-b1-int8", "lean-7b-bf16-12gb",
        "lean-speed-compiled-b8-k32", "lean-qwen-4b-host")  # fmt: skip


def rehearsed(python: str, row: str, environment: Mapping[str, str]) -> Measurement:
    """A tested row's step without a GPU, in an environment. Raises CalledProcessError."""
    tested = shipped_table().row(row)
    text = tested.data_shape.text_tokens if tested.data_shape else 96
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "plan.json"
        path.write_text(tested.plan.override(["weights=random"]).to_json(), encoding="utf-8")
        done = subprocess.run(
            [python, "-m", "trainer.rehearse", str(path), "--fake", "--text-tokens", str(text)],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return Measurement.model_validate_json(done.stdout)


def compared(python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The record of a comparison: versions of both, and bytes of each row."""
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "rows": {}}
    for row in ROWS:
        here = rehearsed(sys.executable, row, {})
        there = rehearsed(python, row, {"PYTHONPATH": str(ROOT)} | dict(environment))
        found |= {"here": here.versions, "there": there.versions}
        bytes_ = here.peak_allocated_bytes, there.peak_allocated_bytes
        found["rows"][row] = bytes_
        print(line(row, *bytes_), flush=True)
    return found


def line(row: str, here: int | None, there: int | None) -> str:
    """A row of the table."""
    if here is None or there is None:
        return f"| {row} | – | – | could not be forecast |"
    return f"| {row} | {here / MIB:.1f} | {there / MIB:.1f} | {(there - here) / MIB:+.1f} |"


def table(record: Mapping[str, Any]) -> list[str]:
    """Markdown: versions, and bytes of each row."""
    named = [", ".join(f"{name} {record[side].get(name, '–')}" for name in SHOWN)
             for side in ("here", "there")]  # fmt: skip
    head = [f"On {record['date']}: *A* is {named[0]}; *B* is {named[1]}.", "",
            "| row | A, MiB | B, MiB | B takes |", "|---|---|---|---|"]  # fmt: skip
    return head + [line(row, *sizes) for row, sizes in record["rows"].items()]


def write_table(records: Sequence[Mapping[str, Any]]) -> None:
    """Write the last comparison into docs/versions.md."""
    put(DOCS, BEGIN, END, table(records[-1]))


def main() -> None:
    """Compare, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("python", nargs="?", help="interpreter of the other environment")
    what.add_argument("--lowest", action="store_true", help="the lowest versions, with this torch")
    what.add_argument("--table", action="store_true", help="write docs/versions.md's table")
    arguments = parser.parse_args()
    if arguments.table:
        lines = ROWS_FILE.read_text(encoding="utf-8").splitlines()
        return write_table([json.loads(one) for one in lines])
    with tempfile.TemporaryDirectory() as folder:
        environment = {}
        if arguments.lowest:
            install_lowest(Path(folder))
            environment["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT)])
        record = compared(arguments.python or sys.executable, environment)
    with ROWS_FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
