"""Forecast against measured: the rows of lattice_measured.jsonl and lean.jsonl that ran.

    python benchmarks/forecast.py        docs/forecast.md's tables and profiles/forecast_errors.json

Forecasts are made without a GPU, two at a time, by what `lisa-advise forecast` calls. Half of the
lattice's rows were set aside before anything was tuned (benchmarks/lattice.py): they come first.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advisor.forecast import ERRORS_FILE, Forecast, Worst, forecast
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "forecast.md"
BEGIN, END = "<!-- benchmarks/forecast.py -->", "<!-- /benchmarks/forecast.py -->"
MEASURED = {"tensors": "peak_allocated_bytes", "pool": "peak_reserved_bytes",
            "process": "process_bytes", "host": "host_bytes"}  # fmt: skip

HOPPER = (9, 0)


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
                group = "compiled" if m["plan"]["compile"] else "chosen"
            found.append(record | {"group": group})
    order = ["drawn, set aside", "drawn", "chosen", "compiled"]
    return sorted(found, key=lambda row: (order.index(row["group"]), row["name"]))


def errors_of(record: dict[str, Any], found: Forecast) -> dict[str, float]:
    """Percent by which each tier is off; above zero is too much."""
    m = record["measurement"]
    return {tier.name: 100 * (tier.bytes / m[MEASURED[tier.name]] - 1) for tier in found.tiers}


def ask(record: dict[str, Any]) -> tuple[Forecast, float]:
    """The forecast of a row, and its seconds."""
    m = record["measurement"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        worst = Worst(text_tokens=m["text_tokens"][1], masks=m["masks"])
        found = forecast(Plan.parse(m["plan"]), worst, HOPPER, cache=Path(cache))
    return found, time.monotonic() - started


def summary(errors: list[float]) -> tuple[float, float, float]:
    """Median and worst size of the errors, and the worst under-prediction."""
    sizes = [abs(error) for error in errors]
    return statistics.median(sizes), max(sizes), max(0.0, -min(errors))


def main() -> None:
    """Forecast, compare, write tables and errors."""
    table = ["| row | group | allocator | tensors MiB | error | pool | error | process | host |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    by_group: dict[str, dict[str, list[float]]] = {}
    records = rows()
    with ThreadPoolExecutor(2) as pool:
        for record, (found, seconds) in zip(records, pool.map(ask, records), strict=True):
            errors = errors_of(record, found)
            m = record["measurement"]
            expandable = "expandable" in m["plan"]["allocator"]
            segments = "expandable" if expandable else "whole"
            groups = [record["group"]]
            if record["group"] != "compiled":
                groups += ["plain", f"{segments} segments"]
            for group in groups:
                for tier, error in errors.items():
                    by_group.setdefault(group, {}).setdefault(tier, []).append(error)
            sizes = [m[MEASURED[tier]] / 2**20 for tier in ("tensors", "pool")]
            table.append(
                f"| {record['name']} | {record['group']} | {segments} | {sizes[0]:.0f} | "
                f"{errors['tensors']:+.2f} % | {sizes[1]:.0f} | "
                f"{errors['pool']:+.2f} % | {errors['process']:+.2f} % | {errors['host']:+.1f} % |"
            )
            print(f"{table[-1]} {seconds:.0f} s", flush=True)
    totals = ["| rows | tier | count | median | worst | worst under |", "|---|---|---|---|---|---|"]
    published: dict[str, dict[str, str]] = {}
    for group, tiers in by_group.items():
        for tier, errors_seen in tiers.items():
            median, worst, under = summary(errors_seen)
            totals.append(f"| {group} | {tier} | {len(errors_seen)} | {median:.2f} % | "
                          f"{worst:.2f} % | {under:.2f} % |")  # fmt: skip
            if group in ("plain", "compiled"):
                published.setdefault(group, {})[tier] = (
                    f"{len(errors_seen)} rows on one H100: median {median:.2f} %, worst "
                    f"{worst:.1f} %, under by at most {under:.1f} %"
                )
    print("\n".join(totals))
    ERRORS_FILE.write_text(json.dumps(published, indent=2) + "\n")
    before, _, rest = DOCS.read_text().partition(BEGIN)
    text = "\n".join([BEGIN, *totals, "", *table, END])
    DOCS.write_text(before + text + rest.partition(END)[2])


if __name__ == "__main__":
    main()
