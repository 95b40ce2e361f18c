"""What two GPUs of one machine take and bring: each row's processes train side by side.

    python benchmarks/ranks.py [NAME ...] --out FILE     on a machine with two GPUs
    python benchmarks/ranks.py --forecast                what each rank was forecast to take
    python benchmarks/ranks.py --table                   docs/several-gpus.md's measured tables

Random weights of the true shapes. A row is a plan in one process and in two, with the same
effective batch; every rank is a process of `trainer.rehearse` under the row's cap.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tables import put, rows_of

from advisor.machine.cuda_context import HOPPER
from advisor.memory.card import Card
from advisor.memory.forecast import forecast
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "ranks.jsonl"
DOCS = ROOT / "docs" / "several-gpus.md"
BEGIN, END = "<!-- benchmarks/ranks.py -->", "<!-- /benchmarks/ranks.py -->"
CARD = Card(compute_capability=(9, 0), context=HOPPER)
TIERS = {"tensors": "peak_allocated_bytes", "pool": "peak_reserved_bytes"}
PATIENCE = 240  # seconds for a row; longer is a hang


@dataclass(frozen=True)
class Row:
    """A plan; the GB card whose share of memory each process may take; processes to compare."""

    name: str
    settings: dict[str, Any]
    cap_gib: float
    text: str = "96"
    counts: tuple[int, ...] = (1, 2)
    environment: dict[str, str] = field(default_factory=dict)
    sharded: str = ""  # by benchmarks/sharding.py


BASE: dict[str, Any] = {
    "weights": "random", "device": "cuda", "dtype": "bf16", "checkpointed_layers": "all",
    "effective_batch": 20, "micro_batch": 10,
}  # fmt: skip
FAST = {"compile": True, "host_embeddings": True}
SLOW_LINK = {"NCCL_P2P_DISABLE": "1"}  # through host memory, as between GeForce cards


def host(layers: int) -> dict[str, Any]:
    """Whole bf16 weights, so many layers of them streamed."""
    return {"quantization": "none", "host_layers": layers, "host_embeddings": True}


ROWS = (
    Row("7b-nf4", BASE | FAST | {"model": "7b"}, 7.3),
    Row("7b-nf4-k3", BASE | FAST | {"model": "7b", "questions_per_picture": 3,
        "effective_batch": 36, "micro_batch": 6}, 7.3, "160"),
    Row("4b-nf4", BASE | {"model": "sa2va-qwen3-vl-4b", "host_embeddings": True}, 11.2),
    Row("4b-nf4-k4", BASE | FAST | {"model": "qwen3-vl-4b", "questions_per_picture": 4,
        "effective_batch": 48, "micro_batch": 6}, 7.3, "259"),
    Row("7b-nf4-b2", BASE | {"model": "7b", "micro_batch": 2, "effective_batch": 4}, 7.3),
    Row("7b-nf4-slow-link", BASE | FAST | {"model": "7b"}, 7.3, environment=SLOW_LINK),
    Row("7b-bf16-host", BASE | {"model": "7b"} | host(24), 7.3),
    Row("7b-bf16-host24", BASE | {"model": "7b"} | host(24), 9.0),
    Row("13b-bf16-host", BASE | {"model": "13b"} | host(24), 15.0),
    Row("13b-bf16-host40", BASE | {"model": "13b"} | host(40), 20.0, counts=(2,)),
    Row("13b-bf16-host40-slow-link", BASE | {"model": "13b"} | host(40), 20.0, counts=(2,),
        environment=SLOW_LINK),
    Row("13b-bf16-fsdp2", BASE | {"model": "13b"} | host(40), 20.0, counts=(2,), sharded="fsdp2"),
    Row("13b-bf16-fsdp2-slow-link", BASE | {"model": "13b"} | host(40), 20.0, counts=(2,),
        environment=SLOW_LINK, sharded="fsdp2"),
    Row("13b-bf16-gather-slow-link", BASE | {"model": "13b"} | host(40), 20.0, counts=(2,),
        environment=SLOW_LINK, sharded="gather"),
    Row("13b-nf4", BASE | {"model": "13b", "host_embeddings": True}, 13.0, counts=(2,)),
    Row("2b-bf16", BASE | {"model": "qwen3-vl-2b", "quantization": "none"}, 11.2, counts=(2,)),
    Row("7b-r64", BASE | {"model": "7b", "host_embeddings": True, "lora": {
        "rank": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}}, 11.2, counts=(2,)),
    Row("7b-head", BASE | {"model": "7b", "train": ["mask_decoder", "text_hidden_fcs",
        "embeddings"]}, 15.0, counts=(2,)),
)  # fmt: skip


def measure(row: Row, count: int) -> list[dict[str, Any]] | str:
    """The measurement of each rank, or how the group ended."""
    plan = Plan.parse(row.settings | {"processes": count})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "plan.json"
        place.write_text(plan.to_json())
        way = ["benchmarks/sharding.py", row.sharded] if row.sharded else ["-m", "trainer.rehearse"]
        command = [sys.executable, *way, str(place), "--text-tokens", row.text,
                   "--steps", "8", "--cap-gib", str(row.cap_gib)]  # fmt: skip
        ranks = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            given = os.environ | row.environment | (group | own if count > 1 else {})
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            ranks.append(subprocess.Popen(command, env=given, cwd=ROOT, **pipes))
        until, most = time.monotonic() + PATIENCE, 0
        with ThreadPoolExecutor(count) as pool:
            said = [pool.submit(rank.communicate) for rank in ranks]
            while not all(one.done() for one in said):
                most = max(most, proportional(ranks))
                if time.monotonic() > until or any(rank.poll() for rank in ranks):
                    for rank in ranks:
                        rank.kill()
                time.sleep(1)
    texts = [one.result() for one in said]
    if any(rank.returncode for rank in ranks):
        return "\n".join(f"{rank.returncode}: {error[-1500:]}"
                         for rank, (_, error) in zip(ranks, texts, strict=True))  # fmt: skip
    return [json.loads(out) | {"host_of_all_bytes": most} for out, _ in texts]


def proportional(ranks: list[subprocess.Popen[str]]) -> int:
    """Bytes of host memory of all ranks; what they share counts once (Linux's PSS)."""
    total = 0
    for rank in ranks:
        with suppress(OSError):
            text = Path(f"/proc/{rank.pid}/smaps_rollup").read_text()
            total += 1024 * sum(int(line.split()[1]) for line in text.splitlines()
                                if line.startswith("Pss:"))  # fmt: skip
    return total


def run(out: Path, names: list[str]) -> None:
    """Measure the rows whose names match, one after the other."""
    started = time.monotonic()
    for row in ROWS:
        if names and not any(fnmatch(row.name, name) for name in names):
            continue
        for count in row.counts:
            found = measure(row, count)
            if isinstance(found, str):
                print(row.name, count, "FAILED", found, flush=True)
                continue
            first = found[0]
            print(f"{time.monotonic() - started:.0f} s", row.name, count,
                  [m["verdict"] for m in found], first["step_seconds"],
                  first["samples_per_second"], first["first_loss"],
                  [m["peak_allocated_bytes"] for m in found],
                  [m["peak_reserved_bytes"] for m in found],
                  [m["process_bytes"] for m in found], first["host_of_all_bytes"],
                  [m["error"] for m in found], flush=True)  # fmt: skip
            with out.open("a") as file:
                kept = {"name": row.name, "processes": count, "environment": row.environment,
                        "sharded": row.sharded, "measurements": found}  # fmt: skip
                file.write(json.dumps(kept) + "\n")


def ran(row: dict[str, Any]) -> bool:
    """Whether a row's plan, as the product has it, fitted."""
    return not row["sharded"] and all(m["verdict"] == "FITS" for m in row["measurements"])


def forecast_rows(rows: list[dict[str, Any]]) -> None:
    """Add to each row that ran what one of its ranks is forecast to take."""
    for row in filter(ran, rows):
        m = row["measurements"][0]
        worst = Worst(text_tokens=m["text_tokens"][1], masks=m["masks"])
        with tempfile.TemporaryDirectory() as cache:
            found = forecast(Plan.parse(m["plan"]), worst, CARD, Path(cache))
        row["forecast"] = {tier.name: tier.bytes for tier in found.tiers}
        print(row["name"], row["processes"], row["forecast"], flush=True)


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/several-gpus.md between its marks."""
    table = ["| plan | a pass of each | cards | samples/s | × one card | tensors of each, GiB | "
             "forecast | pool | forecast |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    alone = {row["name"]: row["measurements"][0] for row in rows
             if row["processes"] == 1 and ran(row)}  # fmt: skip
    for row in filter(ran, rows):
        most = {tier: max(m[name] for m in row["measurements"]) for tier, name in TIERS.items()}
        off = {tier: f"{100 * (row['forecast'][tier] / size - 1):+.2f} %"
               for tier, size in most.items()}  # fmt: skip
        rates = sorted({round(m["samples_per_second"], 1) for m in row["measurements"]})
        one = alone.get(row["name"]) if row["processes"] > 1 else None
        gain = "–".join(f"{rate / one['samples_per_second']:.2f}" for rate in rates) if one else ""
        link = ", no peer access" if row["environment"] else ""
        told = "–".join(map(str, rates))
        a_pass = pass_text(row["measurements"][0]["plan"])
        table.append(f"| {row['name']}{link} | {a_pass} | {row['processes']} | {told} | {gain} | "
                     f"{most['tensors'] / 2**30:.2f} | {off['tensors']} | "
                     f"{most['pool'] / 2**30:.2f} | {off['pool']} |")  # fmt: skip
    put(DOCS, BEGIN, END, [*table, "", host_text(rows)])
    print("\n".join(table))


def pass_text(plan: dict[str, Any]) -> str:
    """What a plan's name does not say, and its speed depends on: batch, and compiling."""
    rows, questions = plan["micro_batch"], plan.get("questions_per_picture", 1)
    text = f"{rows} rows" + (f" of {questions} questions" if questions > 1 else "")
    return text + (", compiled" if plan["compile"] else ", plain")


def host_text(rows: list[dict[str, Any]]) -> str:
    """What the processes of a machine take of host memory with one copy of its layers."""
    taken = {(row["name"], row["processes"]): row["measurements"][0].get("host_of_all_bytes")
             for row in rows if row["name"].endswith("bf16-host")}  # fmt: skip
    parts = []
    for name in sorted({name for name, _ in taken}):
        one, two = taken[name, 1], taken[name, 2]
        parts.append(f"{name} {one / 2**30:.1f} GiB for one process and {two / 2**30:.1f} for two, "
                     f"{two / one:.2f} times")  # fmt: skip
    return f"Host memory with 24 bf16 layers there: {'; '.join(parts)}."


def main() -> None:
    """Measure, forecast, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns; all by default")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--forecast", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.forecast or arguments.table):
        run(arguments.out, arguments.names)
        return
    rows = rows_of(ROWS_FILE)
    if arguments.forecast:
        forecast_rows(rows)
        ROWS_FILE.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_table(rows)


if __name__ == "__main__":
    main()
