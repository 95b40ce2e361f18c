"""The timed training steps of benchmarks/*.jsonl, and what the forecast takes each to last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.memory.speed import USUAL, Pace, seconds_of
from profiles.exchange import Link, exchange, exchange_seconds, gradient_bytes, link_of
from profiles.gpus import GpuProfile, gpu_by_nvml
from profiles.plan import Plan

HERE = Path(__file__).resolve().parent
NVLINK = Link(450, 2e-5, "NVLink of two H200s")
WITHOUT_NVLINK = "NCCL_P2P_DISABLE"
# In these the GPU waits for the CPU: each tells how fast its machine launches. Where no row tells,
# the machine is taken to be as ONE's.
ONE, WAITING = "speed-b1", "fp8-7b-1, dtype"
MACHINES = {"shared-": "shared-13b-k1-b4", "qwen-": "qwen-2b-b8", "fp8-": WAITING}


@dataclass(frozen=True)
class Row:
    """A timed step of one process, or of one of several."""

    name: str
    plan: Plan
    text: int  # tokens of each row
    seconds: float
    card: GpuProfile
    link: Link | None = None

    def said(self, pace: Pace = USUAL) -> float:
        """Forecast seconds of the step."""
        found = self.plan.accumulation * seconds_of(self.plan, self.text, self.card, pace)
        if self.link is None:
            return found
        size, count = gradient_bytes(self.plan), self.plan.processes
        return found + exchange().wait_seconds + exchange_seconds(size, count, self.link)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """As in tables.py, which a test cannot import beside this file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timed_rows() -> dict[str, Row]:
    """By name: the timed rows of one process with samples of one length."""
    found = {}
    for record in rows_of(HERE / "lean.jsonl"):
        m = record["measurement"]
        if m["step_seconds"] and m["text_tokens"][0] == m["text_tokens"][1]:
            found[record["name"]] = _row(record["name"], m)
    # The same plans on other machines, by this tree's code.
    again = [
        r
        for r in rows_of(HERE / "adapters.jsonl")
        if r["tree"] == "main" and not r["pefts_forward"]
    ]
    for number, record in enumerate(again, 1):
        first = found[record["name"]]
        name = f"{record['name']}, again ({number})"
        found[name] = replace(first, name=name, seconds=record["step_seconds"])
    return found | {row.name: row for row in (*_in_fp8(), *_alone())}


def machine_of(row: Row) -> str:
    """The row that tells how fast the CPU of its machine is."""
    return next((name for start, name in MACHINES.items() if row.name.startswith(start)), ONE)


def paces(rows: dict[str, Row]) -> dict[str, float]:
    """How long launches take in each machine beside the first, by the row that tells it."""
    return {ONE: 1.0} | {name: pace_of(rows[name]) for name in MACHINES.values()}


def pace_of(row: Row) -> float:
    """How long launches took beside the usual, if the row's GPU waited for them."""
    low, high = (row.said(Pace(launches=n)) for n in (10, 20))
    return 10 + 10 * (row.seconds - low) / (high - low)


def of_one_machine() -> list[Row]:
    """Rows that wait for the CPU, timed once more: one machine, within two minutes."""
    found = timed_rows()
    again = (r for r in rows_of(HERE / "paces.jsonl") if r["kind"] == "step")
    return [replace(found[r["name"]], seconds=r["step_seconds"]) for r in again]


def _row(name: str, m: dict[str, Any], link: Link | None = None) -> Row:
    card = gpu_by_nvml(m["gpu"], m["gpu_bytes"])
    assert card is not None
    return Row(name, Plan.parse(m["plan"]), m["text_tokens"][1], m["step_seconds"], card, link)


def _in_fp8() -> Iterator[Row]:
    """Of benchmarks/fp8.py: steps in the plan's dtype and in FP8, one after the other."""
    for record in rows_of(HERE / "fp8.jsonl"):
        if (m := record.get("measurement")) and m["step_seconds"]:
            yield _row(f"fp8-{record['step']}, {record['products']}", m)


def _ranks(processes: int) -> Iterator[tuple[str, dict[str, Any], Link | None]]:
    """Of benchmarks/ranks.py: the faster process, as the other's time has waiting in it."""
    for record in rows_of(HERE / "ranks.jsonl"):
        measured = [m for m in record.get("measurements") or [] if m["step_seconds"]]
        if measured and record["processes"] == processes and not record["sharded"]:
            slow = WITHOUT_NVLINK in record["environment"]
            fastest = min(measured, key=lambda m: float(m["step_seconds"]))
            link = link_of(1) if slow else NVLINK
            yield record["name"], fastest, link if processes > 1 else None


def _alone() -> Iterator[Row]:
    return (_row(f"ranks-{name}", m) for name, m, _ in _ranks(1))


def rows_of_two() -> list[Row]:
    """The timed rows of two processes."""
    return [_row(name, m, link) for name, m, link in _ranks(2)]
