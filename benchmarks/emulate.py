"""Does the advice hold? The plans for 6-24 GB cards, each trained 20 steps under that card's cap.

    python benchmarks/emulate.py --out FILE      on one large GPU, several side by side
    python benchmarks/emulate.py --table         docs/advice.md's table

Each plan is what `lisa-advise --vram SIZE --model MODEL` says, with samples as long as a plan
allows (512 text tokens); random weights of the true shapes.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lattice
from tables import put, rows_of

from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from advisor.report.plan_words import storage_text
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "emulate.jsonl"
DOCS = ROOT / "docs" / "advice.md"
BEGIN, END = "<!-- benchmarks/emulate.py -->", "<!-- /benchmarks/emulate.py -->"
SIZES, MODELS = (6, 8, 10, 12, 16, 24), ("7b", "13b", "sa2va-qwen3-vl-4b")
STEPS = 20


def row_for(size: int, model: str) -> dict[str, Any]:
    """The advice for a card of `size` GiB: plan, usable bytes, and what the pool may take."""
    advice = advise(Machine(), model, (), Target(vram_bytes=size * 2**30))
    assert advice.plan is not None and advice.budget is not None and advice.needs is not None
    assert advice.speed is not None
    budget = advice.budget
    return {
        "size_gib": size, "model": model, "verdict": advice.verdict,
        "plan": advice.plan.model_dump(mode="json"), "text": advice.text_tokens,
        "masks": advice.plan.questions_per_picture,
        "usable_bytes": budget.usable.bytes, "needs_bytes": advice.needs.bytes,
        "cap_bytes": budget.free.bytes - budget.context.bytes,
        "better_bytes": advice.better.needs.bytes if advice.better else None,
    }  # fmt: skip


def run(out: Path, room_bytes: int, names: list[str] | None) -> None:
    """Train every plan under its cap, as many side by side as the GPU holds."""
    room, started, lock = lattice.Room(room_bytes), time.monotonic(), threading.Lock()

    def work(row: dict[str, Any]) -> None:
        plan = Plan.parse(row["plan"]).override(["weights=random"])
        steps = str(STEPS - 4)  # three to warm up and a last one are done besides
        options = ["--steps", steps, "--cap-gib", f"{row['cap_bytes'] / 2**30:.6f}"]
        with room.taken(row["cap_bytes"] + 2**30):
            found = lattice.rehearse(row, plan, *options)
        if isinstance(found, str):
            print(row["size_gib"], row["model"], found[-600:], flush=True)
            return
        kept = ("verdict", "error", "peak_allocated_bytes", "peak_reserved_bytes", "gpu",
                "host_bytes", "first_loss", "last_loss", "versions")  # fmt: skip
        row = row | {"measured": {name: found[name] for name in kept}, "steps": STEPS}
        print(row["size_gib"], row["model"], row["measured"], flush=True)
        with lock, out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    rows = [row_for(size, model) for size in reversed(SIZES) for model in MODELS
            if names is None or f"{size}-{model}" in names]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, rows))
    print(f"{time.monotonic() - started:.0f} s")


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/advice.md between its marks."""
    table = ["| card | model | plan | forecast | took | of the usable | 20 steps |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in sorted(rows, key=lambda row: (row["size_gib"], MODELS.index(row["model"]))):
        plan, m = Plan.parse(row["plan"]), row["measured"]
        layers = plan.profile.decoder.layers
        told = f"{storage_text(plan)}, {plan.questions_per_picture} questions, "
        told += f"micro-batch {plan.micro_batch}, "
        told += f"{plan.checkpointed_layers} of {layers} checkpointed"
        told += f", {plan.host_layers} on the host" if plan.host_layers else ""
        took, said = m["peak_reserved_bytes"] / 2**30, row["needs_bytes"] / 2**30
        share = m["peak_reserved_bytes"] / row["usable_bytes"]
        table.append(f"| {row['size_gib']} GiB | {row['model']} | {told} | {said:.2f} | {took:.2f} "
                     f"| {share:.0%} | {m['verdict']} |")  # fmt: skip
    put(DOCS, BEGIN, END, table)
    print("\n".join(table))


def main() -> None:
    """Train, or write the table of what was trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 8-7b")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--room-gib", type=float, default=70)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(rows_of(ROWS_FILE))
        return
    run(arguments.out, round(arguments.room_gib * 2**30), arguments.names or None)


if __name__ == "__main__":
    main()
