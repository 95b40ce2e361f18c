"""Is FITS true? Configurations near the border of a card, run on a GPU under that card's cap.

    python benchmarks/verdicts.py --out FILE      runs those not run yet on this GPU, side by side
    python benchmarks/verdicts.py --table         their forecasts (no GPU) and docs/forecast.md

A border is near when the cap lies within 5 % of what the row was measured to take without it:
between its tensors, which it must have, and its pool, which it takes when it can.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lattice
import lean
from forecast import CARD, DOCS
from tables import put, rows_of

from advisor.memory.forecast import Forecast, forecast
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "verdicts.jsonl"
MEASURED = (ROOT / "benchmarks" / "lattice_measured.jsonl", lean.ROWS_FILE)
CARDS = {card: cap for card, cap in lean.CARDS.items() if card >= 6}
NEAR = 0.05
BEGIN, END = "<!-- benchmarks/verdicts.py -->", "<!-- /benchmarks/verdicts.py -->"


def near_borders(files: list[Path]) -> list[dict[str, Any]]:
    """Name, card, plan and sample of every measured row and card whose cap is near."""
    found = []
    for line in (line for file in files for line in file.read_text().splitlines()):
        record = json.loads(line)
        m = record["measurement"]
        if m["verdict"] != "FITS":
            continue
        for card, cap_gib in CARDS.items():
            cap = cap_gib * 2**30
            must, takes = m["peak_allocated_bytes"], m["peak_reserved_bytes"]
            if must <= (1 + NEAR) * cap and takes >= (1 - NEAR) * cap:
                found.append({"name": record["name"], "card_gb": card, "plan": m["plan"],
                              "text": m["text_tokens"][1], "masks": m["masks"]})  # fmt: skip
    return found


def run(rows: list[dict[str, Any]], out: Path, room_bytes: int, seconds: float) -> None:
    """Each row under its card's cap, as many side by side as the GPU holds."""
    room, started, lock = lattice.Room(room_bytes), time.monotonic(), threading.Lock()

    def work(row: dict[str, Any]) -> None:
        cap_gib = CARDS[row["card_gb"]]
        with room.taken(round((cap_gib + 1) * 2**30)):
            if time.monotonic() - started > seconds:
                print(f"{row['name']}: no time left", flush=True)
                return
            options = ["--steps", "2", "--cap-gib", str(cap_gib)]
            found = lattice.rehearse(row, Plan.parse(row["plan"]), *options)
        if isinstance(found, str):
            print(row["name"], found, flush=True)
            return
        kept = ("verdict", "error", "cap_bytes", "peak_allocated_bytes", "peak_reserved_bytes",
                "gpu", "versions")  # fmt: skip
        with lock, out.open("a") as file:
            file.write(json.dumps(row | {key: found[key] for key in kept}) + "\n")
        print(row["name"], row["card_gb"], found["verdict"], found["error"][:60], flush=True)

    rows.sort(key=lambda row: -row["card_gb"])  # what needs much room goes first
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(work, rows))
    print(f"{time.monotonic() - started:.0f} s")


def write_table(rows: list[dict[str, Any]]) -> None:
    """Forecast each row under its cap, compare, and put the table into docs/forecast.md."""

    def ask(row: dict[str, Any]) -> Forecast:
        worst = Worst(text_tokens=row["text"], masks=row["masks"])
        card = replace(CARD, cap_bytes=row["cap_bytes"])
        return forecast(Plan.parse(row["plan"]), worst, card)

    table = ["| row | card | forecast | on the GPU | |", "|---|---|---|---|---|"]
    burst = refused = tight = 0
    with ThreadPoolExecutor(2) as pool:
        for row, found in zip(rows, pool.map(ask, rows), strict=True):
            ran = row["verdict"] == "FITS"
            burst += (is_burst := found.verdict == "FITS" and not ran)
            refused += (in_vain := found.verdict == "OOM" and ran)
            tight += found.verdict == "TIGHT"
            note = "**ran out of memory**" if is_burst else "refused in vain" if in_vain else ""
            table.append(f"| {row['name']} | {row['card_gb']} GB | {found.verdict}: "
                         f"{found.reason} | {row['verdict']} | {note} |")  # fmt: skip
            print(table[-1], flush=True)
    ran_at_all = sum(row["verdict"] == "FITS" for row in rows)
    total = (f"{len(rows)} runs, of which {ran_at_all} ran. Said to fit, but ran out of memory: "
             f"{burst}. Refused, but ran: {refused}. TIGHT (no promise): {tight}.")  # fmt: skip
    put(DOCS, BEGIN, END, [total, "", *table])


def main() -> None:
    """Run the rows near a border, or write the table of those that ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, nargs="*", default=MEASURED)
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--room-gib", type=float, default=68)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after this")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(rows_of(ROWS_FILE))
        return
    standing = ROWS_FILE.read_text().splitlines() if ROWS_FILE.exists() else []
    known = {(row["name"], row["card_gb"]) for row in map(json.loads, standing)}
    rows = [row for row in near_borders(list(arguments.measured))
            if (row["name"], row["card_gb"]) not in known]  # fmt: skip
    run(rows, arguments.out, round(arguments.room_gib * 2**30), arguments.seconds)


if __name__ == "__main__":
    main()
