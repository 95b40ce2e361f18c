"""`lisa-segment --serve` with lisa-tiny, and the rows of what was tried with it.

python benchmarks/served.py           the tables in docs/serving.md, from benchmarks/serving.jsonl
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from demo_seeds import cpu_model
from tables import put, rows_of

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE = ROOT / "benchmarks" / "serving.jsonl", ROOT / "docs" / "serving.md"
PACKAGES = ("starlette", "uvicorn", "python-multipart", "torch")


@dataclass
class Served:
    """A server's address, its process, and what it printed."""

    url: str
    process: psutil.Process
    said: list[str]

    def cpu_seconds(self) -> float:
        """Processor time of both processes; by the clock it depends on what else runs here."""
        both = (self.process, self.model_process())
        times = [one.cpu_times() for one in both if one is not None]
        return sum(one.user + one.system for one in times)

    def model_process(self) -> psutil.Process | None:
        """The process with the model, if it is there."""
        found = self.process.children()
        return found[0] if found else None


def untrained_run(folder: Path, new_tokens: int = 16) -> Path:
    """A run whose adapters are as they begin: lisa-tiny as it is packaged."""
    sys.path.insert(0, str(ROOT))
    import torch

    from profiles.plan import Plan
    from trainer.model.build import build, read_tokenizer
    from trainer.model.weights import weight_source
    from trainer.run import checkpoint

    plan = Plan.parse({"model": "tiny", "device": "cpu", "dtype": "fp32", "quantization": "none",
                       "tokens": {"max_new_tokens": new_tokens}})  # fmt: skip
    model = build(plan, read_tokenizer(plan), torch.device("cpu"))
    checkpoint.save(folder / "best", model, plan, {"base": weight_source(plan).fingerprint})
    return folder


@contextmanager
def served(run: Path, *options: str, port: str = "0") -> Iterator[Served]:
    """A server as a user starts it, until the end of the block; port 0 is a free one."""
    command = [sys.executable, "-m", "trainer.cli.segment", "--serve", "--run", str(run)]
    process = subprocess.Popen(
        [*command, "--port", port, *options], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said: list[str] = []
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said.append(line.rstrip())
            if line.startswith("answering on "):
                break
        else:
            raise RuntimeError("\n".join(said))
        lines = process.stderr
        threading.Thread(target=lambda: said.extend(lines), daemon=True).start()
        url = said[-1].split()[2].removesuffix("/docs,")
        yield Served(url, psutil.Process(process.pid), said)
    finally:
        process.terminate()
        process.wait()


def keep(kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write a row, which replaces the earlier one of its kind; all of it."""
    where = {"date": datetime.date.today().isoformat(), "cpu": cpu_model(),
             "cores": len(os.sched_getaffinity(0)), "load_average": round(os.getloadavg()[1], 1),
             "packages": {name: version(name) for name in PACKAGES}}  # fmt: skip
    rows = {row["kind"]: row for row in read_rows()} | {kind: {"kind": kind, **facts, **where}}
    ROWS.write_text("".join(json.dumps(row) + "\n" for _, row in sorted(rows.items())), "utf-8")
    print(json.dumps(rows[kind]))
    return rows[kind]


def read_rows() -> list[dict[str, Any]]:
    """All rows."""
    return rows_of(ROWS) if ROWS.exists() else []


def write_tables() -> None:
    """Into docs/serving.md."""
    rows = {row["kind"]: row for row in read_rows()}
    tables = {"load": _load, "groups": _groups, "fuzz": _fuzz, "schema": _schema}
    for kind, lines in tables.items():
        if kind in rows:
            script = f"benchmarks/serve_{kind}.py"
            begin, end = f"<!-- {script} -->", f"<!-- /{script} -->"
            put(PAGE, begin, end, [*lines(rows[kind]), "", _where(rows[kind])])


def _where(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in row["packages"].items())
    load = row.get("load_average")
    beside = "" if load is None else f", with a load of {load} by all programs"
    return f"{row['date']}, {row['cores']} cores of {row['cpu']}{beside}; {versions}."


def _load(row: dict[str, Any]) -> list[str]:
    head = [
        "| clients | requests | answered | equal to one client's | 503 and asked again | "
        "median, s | 95 %, s | longest, s | a second |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for one in row["phases"]:
        clients = f"{one['clients']}, {one['kills']} kills" if one["kills"] else one["clients"]
        lines.append(f"| {clients} | {one['requests']} | {one['answered']} | {one['equal']} | "
                     f"{one['retried']} | {one['median']:.2f} | {one['p95']:.2f} | "
                     f"{one['longest']:.2f} | {one['rate']:.1f} |")  # fmt: skip
    return head + lines


def _fuzz(row: dict[str, Any]) -> list[str]:
    lines = [
        "| what is hostile | cases | answered | refused | most CPU time, s |",
        "|---|---|---|---|---|",
    ]
    for one in row["surfaces"]:
        refused = ", ".join(f"{n} × {status}" for status, n in sorted(one["refused"].items()))
        lines.append(f"| {one['name']} | {one['cases']} | {one['answered']} | {refused} | "
                     f"{one['slowest']:.2f} |")  # fmt: skip
    memory = (
        f"The server held {row['server_mib']} MiB at most ({row['server_before_mib']} before), "
        f"the model's process {row['model_mib']} MiB ({row['model_before_mib']} before)."
    )
    uvicorn = (f"On its own stderr uvicorn printed {row['uvicorn']} tracebacks, about connections "
               "that had sent no HTTP and got nothing more.")  # fmt: skip
    return [*lines, "", memory, uvicorn]


def _groups(row: dict[str, Any]) -> list[str]:
    masks = row["masks_equal"] + row["masks_rounded"]
    others = f"; the others differ by {row['most_pixels']} pixels at most" * bool(
        row["masks_rounded"]
    )
    lasted = "One process answered all" if row["same_process"] else "The process ended on the way"
    return [f"{row['requests']} requests of {row['clients']} clients with {row['questions']} "
            f"questions, half of them asked again:",
            f"{row['answered']} had the words that each question gets alone. Of {masks} masks "
            f"{row['masks_equal']} were equal{others}.",
            f"Between them {row['left']} clients left, and {row['refused']} were refused.",
            f"{lasted}; it held {row['rounds_mib'][0]} MiB at most in the first half, "
            f"{row['rounds_mib'][1]} in the second."]  # fmt: skip


def _schema(row: dict[str, Any]) -> list[str]:
    return [f"schemathesis {row['schemathesis']}: {row['cases']} cases, of which were answered",
            f"{row['answered']}; {row['failures']} failures of these checks:",
            f"{', '.join(row['checks'])}."]  # fmt: skip


if __name__ == "__main__":
    write_tables()
