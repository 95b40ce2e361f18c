"""Factors of the step-time forecast, from profiled and timed steps on an H100 and an H200.

    python benchmarks/speed.py        writes profiles/speed.json and docs/speed.md's table

The products', dequantisation's and element-wise factors come from profiles
(benchmarks/profile.jsonl), launches from the two timed rows of one sample, copies from a row
with and one without. All other timed rows of benchmarks/lean.jsonl are set aside to tell the error.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tables import put

from advisor.memory import speed
from advisor.memory.speed import Factors, paper, seconds_of
from profiles.gpus import gpu_by_nvml
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- benchmarks/speed.py -->", "<!-- /benchmarks/speed.py -->"
PLAIN, COMPILED = "stream-b8", "speed-compiled-b10-k32"
RESIDENT = "speed-b8"  # as PLAIN, nothing streamed
MASKED = "shared-k3-b9"
TUNED_ON = (PLAIN, RESIDENT, COMPILED, MASKED, "speed-b1", "speed-compiled-b1-k32")


def timed_rows() -> dict[str, dict[str, Any]]:
    """Plan, text tokens and seconds of the timed rows with samples of one length."""
    found = {}
    for line in (ROOT / "benchmarks" / "lean.jsonl").read_text().splitlines():
        record = json.loads(line)
        m = record["measurement"]
        if m["step_seconds"] and m["text_tokens"][0] == m["text_tokens"][1]:
            found[record["name"]] = {"plan": Plan.parse(m["plan"]), "text": m["text_tokens"][1],
                                     "seconds": m["step_seconds"],
                                     "card": gpu_by_nvml(m["gpu"], m["gpu_bytes"])}  # fmt: skip
    return found


def factors_from(rows: dict[str, dict[str, Any]]) -> Factors:
    """The factors; only rows of `TUNED_ON` are looked at."""
    lines = (ROOT / "benchmarks" / "profile.jsonl").read_text().splitlines()
    profiles = {record["name"]: record for record in map(json.loads, lines)}
    on_paper = {name: paper(rows[name]["plan"], rows[name]["text"], rows[name]["card"])
                for name in TUNED_ON}  # fmt: skip

    def factor(name: str, part: str, *kinds: str) -> float:
        seen = sum(profiles[name]["kinds_ms"][kind] for kind in kinds) / 1e3
        return float(seen / getattr(on_paper[name], part))

    rest = "element-wise", "copy", "attention", "optimizer"

    def launch(name: str) -> float:
        return float((rows[name]["seconds"] - fixed) / on_paper[name].passes)

    busy = profiles[COMPILED]
    fixed = max(0.0, (busy["step_ms"] - busy["kernels_busy_ms"]) / 1e3)
    shown = rows[PLAIN]["seconds"] - rows[RESIDENT]["seconds"]
    return Factors(
        matmul=round(factor(COMPILED, "matmul", "matrix product"), 3),
        dequantisation=round(factor(COMPILED, "dequantisation", "dequantisation"), 3),
        elementwise=round(factor(PLAIN, "elementwise", *rest), 2),
        elementwise_compiled=round(factor(COMPILED, "elementwise", *rest), 2),
        masked_attention=round(factor(MASKED, "masked_attention", "attention"), 2),
        launch_seconds=round(launch("speed-b1"), 5),
        launch_compiled_seconds=round(launch("speed-compiled-b1-k32"), 5),
        fixed_seconds=round(fixed, 4),
        copy=round(max(0.0, shown / on_paper[PLAIN].copies), 3),
        error="",
    )


def main() -> None:
    """Write the factors, and the table of the rows that were set aside."""
    rows = timed_rows()
    found = asdict(factors_from(rows))
    speed.SPEED_FILE.write_text(json.dumps(found, indent=2) + "\n")
    speed.factors.cache_clear()
    table = ["| row | card | | forecast | measured | error |", "|---|---|---|---|---|---|"]
    off = []
    for name, row in rows.items():
        said = seconds_of(row["plan"], row["text"], row["card"])
        error = 100 * (said / row["seconds"] - 1)
        used = name in TUNED_ON
        if not used:
            off.append(abs(error))
        title = row["card"].title.partition(" (")[0]
        role = "made the factors" if used else "set aside"
        table.append(f"| {name} | {title} | {role} | {said:.3f} s | {row['seconds']:.3f} s | "
                     f"{error:+.0f} % |")  # fmt: skip
    found["error"] = (f"{len(off)} set-aside steps on an H100 and an H200: median "
                      f"{statistics.median(off):.0f} %, worst {max(off):.0f} %; no other card "
                      "was timed")  # fmt: skip
    speed.SPEED_FILE.write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join([json.dumps(found, indent=2), *table]))
    put(DOCS, BEGIN, END, table)


if __name__ == "__main__":
    main()
