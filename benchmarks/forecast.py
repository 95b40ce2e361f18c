"""Forecast against measured: the rows of lattice_measured.jsonl and lean.jsonl that ran.

    python benchmarks/forecast.py [NAME ...]  forecasts: benchmarks/forecast_rows.jsonl
    python benchmarks/forecast.py --table     writes docs/forecast.md's tables and
                                              profiles/forecast_errors.json from them

Forecasts are made without a GPU, one a core, by what `lisa-advise forecast` calls. Half of the
lattice's rows were set aside before anything was tuned (benchmarks/lattice.py): they come first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tables import put, rows_of

from advisor.machine.budget import ERRORS_FILE
from advisor.machine.cuda_context import HOPPER
from advisor.memory.card import Card
from advisor.memory.forecast import COMPILED, forecast, group_of
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan
from profiles.sizes import GIB

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "forecast_rows.jsonl"
DOCS = ROOT / "docs" / "forecast.md"
BEGIN, END = "<!-- benchmarks/forecast.py -->", "<!-- /benchmarks/forecast.py -->"
MEASURED = {"tensors": "peak_allocated_bytes", "pool": "peak_reserved_bytes",
            "process": "process_bytes", "host": "host_bytes"}  # fmt: skip

SMALL_POOL = GIB
ASIDE = f"{COMPILED}, set aside"
CARD = Card(compute_capability=(9, 0), context=HOPPER)


def rows() -> list[dict[str, Any]]:
    """Measured rows that ran, with the group to which they belong."""
    found = []
    drawn = map(json.loads, (ROOT / "benchmarks" / "lattice.jsonl").read_text().splitlines())
    held_out = {row["name"] for row in drawn if row["held_out"]}
    for file in ("lattice_measured.jsonl", "lean.jsonl"):
        for line in (ROOT / "benchmarks" / file).read_text().splitlines():
            record = json.loads(line)
            m = record["measurement"]
            if m["verdict"] != "FITS":
                continue
            group = "drawn, set aside" if record["name"] in held_out else "drawn"
            if file == "lean.jsonl":
                group = "chosen"
            if m["plan"]["compile"]:
                group = ASIDE if group == "drawn, set aside" else COMPILED
            found.append(record | {"group": group})
    order = ["drawn, set aside", "drawn", "chosen", ASIDE, COMPILED]
    return sorted(found, key=lambda row: (order.index(row["group"]), row["name"]))


def ask(record: dict[str, Any]) -> dict[str, Any]:
    """The row's forecast beside what was measured, in bytes by tier."""
    m = record["measurement"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        worst = Worst(text_tokens=m["text_tokens"][1], masks=m["masks"])
        plan = Plan.parse(m["plan"])
        found = forecast(plan, worst, CARD, Path(cache))
    kept = {
        "name": record["name"],
        "group": record["group"],
        "gpu": m["gpu"],
        "segments": plan.segments,
        "forecast": {tier.name: tier.bytes for tier in found.tiers},
        "measured": {tier: m[name] for tier, name in MEASURED.items()},
    }
    print(f"{kept['name']} {errors(kept)} {time.monotonic() - started:.0f} s", flush=True)
    return kept


def errors(row: dict[str, Any]) -> dict[str, float]:
    """Percent by which each tier that was measured is off; above zero is too much."""
    return {tier: round(100 * (row["forecast"][tier] / took - 1), 3)
            for tier, took in row["measured"].items() if took}  # fmt: skip


def summary(found: list[float]) -> tuple[float, float, float]:
    """Median and worst size of the errors, and the worst under-prediction."""
    sizes = [abs(error) for error in found]
    return statistics.median(sizes), max(sizes), max(0.0, -min(found))


def groups_of(row: dict[str, Any]) -> list[str]:
    """The groups under which a row is summed up."""
    compiled = row["group"] in (ASIDE, COMPILED)
    known = group_of(row["segments"], compiled)
    if compiled:
        return [ASIDE, known] if row["group"] == ASIDE else [known]
    return [row["group"], "plain", known]


def compiled_doubt(found: list[dict[str, Any]]) -> dict[str, float]:
    """By segments: the largest share of its forecast by which a compiled plan's pool was larger.

    Of small pools that is less than the least margin, which is kept free in any case.
    """
    shares: dict[str, float] = {}
    for row in found:
        told, took = row["forecast"]["pool"], row["measured"]["pool"]
        if row["group"].startswith(COMPILED) and took > SMALL_POOL:
            shares[row["segments"]] = max(took / told - 1, shares.get(row["segments"], 0.0))
    return {segments: round(share, 4) for segments, share in sorted(shares.items())}


def _worst(worst: float, under: float) -> str:
    """The largest error, and the largest of those that are too low, as they matter more."""
    low = f"{under:.1f} % too low"
    return low if under >= worst else f"{worst:.1f} % too high, or {low}"


def write_tables(found: list[dict[str, Any]]) -> None:
    """docs/forecast.md between its marks, and the errors that forecasts are published with."""
    table = ["| row | group | allocator | tensors MiB | error | pool | error | process | host |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    by_group: dict[str, dict[str, list[float]]] = {}
    for row in found:
        off = errors(row)
        # A megabyte is a per cent of lisa-tiny: its rows are reported one by one, in bytes.
        for group in groups_of(row) if row["measured"]["pool"] > SMALL_POOL else []:
            for tier, error in off.items():
                by_group.setdefault(group, {}).setdefault(tier, []).append(error)
        tensors, pool = (row["measured"][tier] / 2**20 for tier in ("tensors", "pool"))
        # Of a container's process the driver does not say everywhere what it takes.
        process = f"{off['process']:+.2f} %" if "process" in off else "–"
        table.append(
            f"| {row['name']} | {row['group']} | {row['segments']} | {tensors:.0f} | "
            f"{off['tensors']:+.2f} % | {pool:.0f} | {off['pool']:+.2f} % | "
            f"{process} | {off['host']:+.1f} % |"
        )
    totals = ["| rows of more than 1 GiB | tier | count | median | worst | worst under |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    published: dict[str, Any] = {}
    for group, tiers in by_group.items():
        for tier, seen in tiers.items():
            median, worst, under = summary(seen)
            totals.append(f"| {group} | {tier} | {len(seen)} | {median:.2f} % | "
                          f"{worst:.2f} % | {under:.2f} % |")  # fmt: skip
            if group.endswith(" segments") or group == COMPILED:
                published.setdefault(group, {})[tier] = (
                    f"median error {median:.2f} %, worst {_worst(worst, under)} "
                    f"({len(seen)} rows of more than 1 GiB on an H100 and an H200)"
                )
    print("\n".join(totals))
    # What the advisor's margin is made from: share by which the pool was larger than said.
    shortfalls: dict[str, list[float]] = {}
    for row in found:
        if row["segments"] == "expandable" and row["measured"]["pool"] > SMALL_POOL:
            short = 1 - row["forecast"]["pool"] / row["measured"]["pool"]
            shortfalls.setdefault(row["gpu"], []).append(round(short, 5))
    published["pool_shortfalls"] = shortfalls
    published["compiled_doubt"] = compiled_doubt(found)
    ERRORS_FILE.write_text(json.dumps(published, indent=2) + "\n")
    put(DOCS, BEGIN, END, [*totals, "", *table])


def main() -> None:
    """Forecast and compare, unless the kept rows will do; write tables and errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns such as 'qwen-*'; all others are kept")
    parser.add_argument("--table", action="store_true", help="from the kept rows")
    arguments = parser.parse_args()
    kept = rows_of(ROWS_FILE)
    if not arguments.table:
        patterns, measured = arguments.names or ["*"], rows()
        asked = [r for r in measured if any(fnmatch(r["name"], p) for p in patterns)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            by_name = {row["name"]: row for row in [*kept, *pool.map(ask, asked)]}
        kept = [by_name[row["name"]] for row in measured if row["name"] in by_name]
        ROWS_FILE.write_text("".join(json.dumps(row) + "\n" for row in kept))
    write_tables(kept)


if __name__ == "__main__":
    main()
