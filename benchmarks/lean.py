"""What LISA needs and how fast it trains, on one GPU with random weights of the true shapes.

    python benchmarks/lean.py [NAME ...]     run rows (all, or patterns such as 'seed-*')
    python benchmarks/lean.py --table        from the kept rows: docs/lean.md's tables, and the rows
                                             of profiles/tested.jsonl that begin with "lean-"; those
                                             of lattice_measured.jsonl there begin with "drawn-"

Each row is a fresh process (`trainer.rehearse`) under a cap on its tensors that stands for a card:
what a user's card leaves after the context and a display. A row run again replaces the old one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tables import put

from profiles.plan import Plan

HERE = Path(__file__).resolve().parent
ROWS_FILE = HERE / "lean.jsonl"
SIDE_BY_SIDE = 6
CARDS = {4: 3.4, 6: 5.4, 8: 7.3, 10: 9.2, 12: 11.2, 16: 15.0, 24: 23.0}  # GB card -> GiB of tensors


@dataclass(frozen=True)
class Row:
    """One configuration: settings over `BASE`, and the card that it must fit."""

    name: str
    title: str
    card: int
    settings: dict[str, Any] = field(default_factory=dict)
    text: str = "96"
    steps: int = 3
    timed: bool = False  # runs alone; others run side by side, and their seconds are dropped


BASE: dict[str, Any] = {
    "model": "7b", "weights": "random", "device": "cuda", "dtype": "bf16",
    "micro_batch": 1, "accumulation": 1, "checkpointed_layers": "all",
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": "qv"},
}  # fmt: skip


def lora(rank: int, targets: str = "qv") -> dict[str, Any]:
    """Settings of adapters with alpha = 2r."""
    return {"lora": {"rank": rank, "alpha": 2 * rank, "dropout": 0.05, "targets": targets}}


# As the document that this project started from trains: projections, [SEG] projection, embedding
# and head whole, without any lever that saves memory.
SEED = {
    "train": ["projector", "text_hidden_fcs", "embeddings"], "cached_encoders": [],
    "logits": "all", "checkpointed_layers": 0, "allocator": "expandable_segments:True",
}  # fmt: skip
# The levers that leave the arithmetic alone.
FREE = {"cached_encoders": ["sam", "clip"], "logits": "supervised", "checkpointed_layers": "all"}
ROWS_ONLY = {"train": ["projector", "text_hidden_fcs", "token_rows"]}
HOST = {"host_embeddings": True}
SMALL = {"optimizer_state": "8bit"}
FULL = {"quantization": "none"}
FAST = {"compile": True}


def batch(size: int) -> dict[str, Any]:
    """A micro-batch that is the effective batch."""
    return {"micro_batch": size, "accumulation": 1}


def seed_rows() -> list[Row]:
    """The first document's four rows and advice by card, unchanged, then with free levers."""
    recipes = [
        ("seed-1", "NF4, no LoRA (row 1, Solution 1)", 8, {"lora": None}),
        ("seed-2", "NF4 + LoRA r=8 (row 2)", 8, lora(8)),
        ("seed-3", "NF4 + LoRA r=4 (row 3, Solution 3)", 8, lora(4)),
        ("seed-4", "no quantisation + LoRA r=8 (row 4, Solution 2)", 12, FULL | lora(8)),
        ("seed-12gb", "no quantisation + LoRA r=16, batch 2 (the document's advice for 12 GB)", 12,
         FULL | lora(16) | batch(2)),
        ("seed-16gb", "NF4 + LoRA r=32, batch 4 (the document's advice for 16 GB)", 16,
         lora(32) | batch(4)),
    ]  # fmt: skip
    rows = []
    for name, title, card, settings in recipes:
        rows.append(Row(name, title, card, SEED | settings))
        free = SEED | settings | FREE
        rows.append(Row(f"{name}-free", f"{title}, caches + checkpointing", card, free))
        few = free | ROWS_ONLY
        rows.append(Row(f"{name}-rows", f"{title}, … + new token rows only", card, few))
    few = SEED | recipes[3][3] | FREE | ROWS_ONLY | HOST | {"host_layers": 8} | SMALL
    rows.append(Row("seed-4-host", "row 4, … + 8 layers and embeddings in host memory", 12, few))
    return rows


def lean_rows() -> list[Row]:
    """7B with NF4 and LoRA at batch 1, then the smallest cards, then bf16."""
    thirteen = {"model": "13b"} | SMALL | HOST
    return [
        Row("7b-b1", "NF4 + LoRA r=8 q,v, all on the card", 6),
        Row("7b-b1-8bit", "… 8-bit AdamW", 6, SMALL),
        Row("7b-b1-host", "… embeddings and head in host memory", 6, SMALL | HOST),
        Row("7b-b1-twice", "… batch 1, accumulated twice", 6, SMALL | HOST | {"accumulation": 2}),
        Row("7b-b1-paged", "… paged 8-bit AdamW", 6, SMALL | HOST | {"optimizer": "paged_adamw"}),
        Row("7b-b1-int8", "int8 + LoRA r=8", 8, {"quantization": "int8"} | SMALL | HOST),
        Row("7b-r64", "NF4 + LoRA r=64 all-linear", 6, lora(64, "all-linear") | SMALL | HOST),
        Row("7b-r64-host", "… 8 layers in host memory", 6,
            lora(64, "all-linear") | SMALL | HOST | {"host_layers": 8}),
        Row("7b-attention", "NF4 + LoRA r=16 attention", 6, lora(16, "attention") | SMALL | HOST),
        Row("7b-4gb", "20 layers in host memory", 4, SMALL | HOST | {"host_layers": 20}),
        Row("13b-8gb", "13B NF4 + LoRA r=8", 8, thirteen),
        Row("13b-8gb-200", "13B, 6 host layers, 200 steps of 24–160 text tokens", 8,
            thirteen | {"host_layers": 6}, text="24:160", steps=200),
        Row("13b-6gb", "13B, 20 layers in host memory", 6, thirteen | {"host_layers": 20}),
        Row("7b-bf16-b1", "bf16 + LoRA r=16", 16, FULL | lora(16)),
        Row("7b-bf16-b4", "bf16 + LoRA r=16, batch 4", 16, FULL | lora(16) | batch(4)),
        Row("7b-bf16-12gb", "bf16 + LoRA r=8, 10 layers in host memory", 12,
            FULL | HOST | SMALL | {"host_layers": 10}),
    ]  # fmt: skip


def speed_rows() -> list[Row]:
    """The original recipe, then the same job under an 8 GB card's cap, then streaming."""

    def row(name: str, title: str, card: int, settings: dict[str, Any], **rest: Any) -> Row:
        return Row(name, title, card, settings, steps=8, timed=True, **rest)

    original = SEED | lora(8)
    kept = original | {"checkpointed_layers": "all"}
    rows = [
        row("speed-seed-b1", "original recipe, batch 1", 16, original | batch(1)),
        row("speed-seed-b2", "original recipe, batch 2", 16, original | batch(2)),
        row("speed-seed-ckpt-b4", "original recipe + checkpointing, batch 4", 16, kept | batch(4)),
        row("speed-seed-ckpt-b6", "original recipe + checkpointing, batch 6", 16, kept | batch(6)),
    ]
    rows += [row(f"speed-b{n}", f"lean, batch {n}", 8, HOST | batch(n)) for n in (1, 8)]
    for n, layers in ((1, 32), (8, 32), (10, 32), (8, 30), (4, 24)):
        settings = HOST | FAST | batch(n) | {"checkpointed_layers": layers}
        title = f"compiled, batch {n}, {layers} of 32 layers checkpointed"
        rows.append(row(f"speed-compiled-b{n}-k{layers}", title, 8, settings))
    rows.append(row("speed-compiled-b8-lengths", "compiled, batch 8, 24–160 text tokens", 8,
                    HOST | FAST | batch(8), text="24:160"))  # fmt: skip
    stream = HOST | {"host_layers": 32} | batch(8)
    rows.append(row("stream-b8", "NF4, all 32 layers in host memory, batch 8", 8, stream))
    for count in (0, 10, 32):
        settings = HOST | FULL | {"host_layers": count} | batch(8)
        title = f"bf16, {count} layers in host memory, batch 8"
        rows.append(row(f"stream-bf16-{count}-b8", title, 24, settings))
    return rows


def shared_rows() -> list[Row]:
    """Several questions a picture: some 616 tokens of prefix and 60 a question."""

    def row(count: int, size: int, title: str, settings: dict[str, Any], **rest: Any) -> Row:
        usual = {"card": 8, "text": str(35 + 61 * count), "steps": 8, "timed": True} | rest
        shared = {"questions_per_picture": count} | batch(size)
        title = f"{title}, {count} questions x {size} pictures"
        named = {"name": f"shared-k{count}-b{size}"} | usual
        return Row(title=title, settings=settings | shared, **named)

    fast = HOST | FAST
    stream = HOST | FULL | {"host_layers": 32}
    thirteen = HOST | {"model": "13b", "host_layers": 20}
    memory: dict[str, Any] = {"timed": False, "steps": 3}
    sizes = ((1, 10), (2, 9), (3, 9), (4, 7), (6, 6), (8, 5))
    return [
        *(row(count, size, "compiled", fast) for count, size in sizes),
        row(3, 9, "not compiled", HOST, name="shared-plain-k3-b9"),
        *(row(k, 8, "bf16, all layers in host memory", stream, name=f"shared-stream-k{k}-b8",
              steps=4) for k in (1, 4)),
        *(row(k, 4, "13B NF4, 20 layers in host memory", thirteen, name=f"shared-13b-k{k}-b4",
              steps=4) for k in (1, 4)),
        row(3, 1, "NF4, on the card", {}, name="shared-k3-card", **memory),
        row(3, 2, "nothing checkpointed", {"checkpointed_layers": 0}, name="shared-k3-plain",
            card=24, **memory),
        row(2, 4, "int8", {"quantization": "int8"} | SMALL | HOST, name="shared-k2-int8",
            card=12, **memory),
        row(5, 2, "LoRA r=64 all-linear", lora(64, "all-linear") | SMALL | HOST,
            name="shared-k5-r64", **memory),
        row(8, 1, "whole segments", HOST | {"allocator": ""}, name="shared-k8-whole", **memory),
        row(4, 3, "16 of 32 layers checkpointed", HOST | {"checkpointed_layers": 16},
            name="shared-k4-half", card=12, **memory),
    ]  # fmt: skip


def qwen_rows() -> list[Row]:
    """Qwen3-VL with SAM 2: rows of 1024 image tokens and 76 of text."""

    def row(size: str, name: str, title: str, card: int, settings: dict[str, Any], **rest: Any):
        usual = {"text": "76", "settings": {"model": f"qwen3-vl-{size}"} | settings} | rest
        return Row(f"qwen-{size}-{name}", f"Qwen3-VL-{size.upper()} {title}", card, **usual)

    def shared(count: int, size: int) -> Row:
        settings = HOST | FAST | {"questions_per_picture": count} | batch(size)
        return row("4b", f"k{count}-b{size}", f"NF4, compiled, {count} questions x {size} pictures",
                   8, settings, text=str(15 + 61 * count), steps=8, timed=True)  # fmt: skip

    def kept(size: str, count: int, checkpointed: int, how: dict[str, Any] = FAST) -> Row:
        rows = {"accumulation": 2, "questions_per_picture": count}
        settings = how | rows | {"model": f"sa2va-qwen3-vl-{size}",
                                 "checkpointed_layers": checkpointed}  # fmt: skip
        name = f"kept-k{count}-c{checkpointed}" + "-plain" * (how != FAST)
        title = f"Sa2VA's, NF4, {count} questions, {checkpointed} layers recomputed"
        return row(size, name, title, 16, settings, text="512", steps=2)

    fast: dict[str, Any] = {"steps": 8, "timed": True}
    return [
        kept("2b", 3, 0), kept("4b", 1, 0), kept("4b", 3, 0), kept("4b", 3, 18),
        kept("4b", 1, 0, {}), kept("4b", 3, 0, {}),
        row("2b", "host", "NF4, embeddings in host memory", 4, HOST, steps=20),
        row("4b", "host", "NF4, embeddings in host memory", 4, HOST, steps=20),
        row("4b", "card", "NF4, all on the card", 6, {}),
        row("8b", "host", "NF4, embeddings in host memory", 6, HOST, steps=20),
        row("8b", "card", "NF4, all on the card", 8, {}),
        row("8b", "half", "NF4, embeddings and 18 of 36 layers in host memory", 4,
            HOST | {"host_layers": 18}),
        row("2b", "bf16", "bf16, LoRA r=16", 8, FULL | lora(16)),
        row("4b", "bf16", "bf16, LoRA r=16", 12, FULL | lora(16)),
        row("4b", "online", "NF4, nothing cached", 8, {"cached_encoders": []}),
        *(row(size, "b8", "NF4, compiled, batch 8", card, HOST | FAST | batch(8), **fast)
          for size, card in (("2b", 8), ("4b", 8), ("8b", 12))),
        row("4b", "plain-b8", "NF4, batch 8", 8, HOST | batch(8), **fast),
        *(shared(count, size) for count, size in ((3, 8), (4, 7))),
    ]  # fmt: skip


def all_rows() -> list[Row]:
    """Every row, in the order of the tables."""
    return seed_rows() + lean_rows() + speed_rows() + shared_rows() + qwen_rows()


def run(row: Row) -> dict[str, Any]:
    """Run one row in a fresh process; its record."""
    plan = Plan.parse(BASE | row.settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json())
        command = [
            sys.executable,
            "-m",
            "trainer.rehearse",
            str(path),
            "--text-tokens",
            row.text,
        ]
        command += ["--steps", str(row.steps)]
        command += ["--cap-gib", str(CARDS[row.card])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    record: dict[str, Any] = {"name": row.name, "title": row.title, "card_gb": row.card}
    record["date"] = datetime.date.today().isoformat()
    if done.returncode:
        return record | {"failed": done.stderr.strip().splitlines()[-12:]}
    measurement = json.loads(done.stdout)
    if not row.timed:
        dropped = ("step_seconds", "samples_per_second", "model_flops_utilisation", "load_seconds")
        measurement |= dict.fromkeys(dropped)
    return record | {"measurement": measurement}


def read_rows() -> dict[str, dict[str, Any]]:
    """The kept records by name."""
    if not ROWS_FILE.exists():
        return {}
    lines = ROWS_FILE.read_text().splitlines()
    return {record["name"]: record for record in map(json.loads, lines)}


def write_rows(kept: dict[str, dict[str, Any]], path: Path) -> None:
    """All records, in the order of the rows."""
    order = {row.name: index for index, row in enumerate(all_rows())}
    names = sorted(kept, key=lambda name: order.get(name, len(order)))
    path.write_text("".join(json.dumps(kept[name]) + "\n" for name in names))


def brief(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    if "failed" in record:
        return f"{record['name']:22} FAILED\n    " + "\n    ".join(record["failed"])
    m = record["measurement"]

    def gib(name: str) -> str:
        return "-" if m[name] is None else f"{m[name] / 2**30:.2f}"

    figures = [gib(n) for n in ("load_peak_bytes", "static_bytes", "peak_allocated_bytes",
                                "peak_reserved_bytes", "process_bytes")]  # fmt: skip
    speed = f"{m['step_seconds']} s {m['samples_per_second']}/s" if m["step_seconds"] else ""
    mfu = m["model_flops_utilisation"]
    return f"{record['name']:22} {m['verdict']} {' '.join(figures)} {speed} {mfu} {m['error']}"


def table_line(record: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    m = record["measurement"]
    if m["verdict"] == "OOM":
        load = "while loading" if m["error"].startswith("load") else "in the step"
        asked = m["error"].partition("Tried to allocate ")[2].partition(". ")[0]
        return (f"| {record['title']} | {CARDS[record['card_gb']]} | out of memory {load}: "
                f"*Tried to allocate {asked}* | | | | |")  # fmt: skip
    cells = [
        f"{m[name] / 2**30:.2f}"
        for name in (
            "load_peak_bytes",
            "static_bytes",
            "peak_allocated_bytes",
            "peak_reserved_bytes",
        )
    ]
    speed = f"{m['samples_per_second']:.1f}" if m["samples_per_second"] else ""
    cells.append(f"{speed} ({m['model_flops_utilisation']:.0%})" if speed else "")
    return f"| {record['title']} | {CARDS[record['card_gb']]} | {' | '.join(cells)} |"


def drawn_records() -> list[dict[str, Any]]:
    """The rows of the lattice that ran; the others had no cap of their own."""
    lines = (HERE / "lattice_measured.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record | {"title": "drawn at random, benchmarks/lattice.py"} for record in records
            if record["measurement"]["verdict"] == "FITS"]  # fmt: skip


def tested_row(record: dict[str, Any], prefix: str = "lean-") -> dict[str, Any]:
    """The record as a row of the tested-configuration table."""
    from trainer.model.build import read_tokenizer
    from trainer.model.footprint import needed_bytes

    script = "lean" if prefix == "lean-" else "lattice"
    m = record["measurement"]
    plan = Plan.parse(m["plan"])
    settings = plan.model_dump(mode="json", exclude_unset=False)
    kept = {k: v for k, v in settings.items() if k not in ("schema_version", "model", "weights")}
    fits = m["verdict"] == "FITS"
    return {
        "id": f"{prefix}{record['name'].removeprefix('draw-')}",
        "title": f"{plan.model}: {record['title']}",
        "source": "measured",
        "status": "measured",
        "model": plan.model,
        "settings": kept,
        "gpu": m["gpu"],
        "gpu_memory_gib": round(m["gpu_bytes"] / 2**30, 2),
        "cap_bytes": m["cap_bytes"],
        "peak_allocated_bytes": m["peak_allocated_bytes"] if fits else None,
        "peak_reserved_bytes": m["peak_reserved_bytes"] if fits else None,
        "gradient_bytes": needed_bytes(plan, read_tokenizer(plan))["gradients"] if fits else 0,
        "step_seconds": m["step_seconds"],
        "verdict": m["verdict"],
        "versions": m["versions"],
        "data_shape": {"image_tokens": plan.profile.most_image_tokens,
                       "text_tokens": m["text_tokens"][1]},
        "date": record["date"],
        "note": m["error"] or f"random weights of the true shapes; benchmarks/{script}.py",
    }  # fmt: skip


def _titled(record: dict[str, Any], row: Row) -> str:
    """The record's line under the title that the row has today."""
    return table_line(record | {"title": row.title})


def doc_tables(kept: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The tables of docs/lean.md by their marks."""
    head = ["| configuration | cap | load peak | static | allocated | reserved | samples/s (MFU) |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    parts = {"seed": seed_rows(), "lean": lean_rows(), "speed": speed_rows()}
    return {
        mark: head + [_titled(kept[row.name], row) for row in rows if row.name in kept]
        for mark, rows in parts.items()
    }


def write_tables(kept: dict[str, dict[str, Any]]) -> None:
    """docs/lean.md between its marks, and the measured rows of the tested table."""
    docs = HERE.parent / "docs" / "lean.md"
    for mark, lines in doc_tables(kept).items():
        put(docs, f"<!-- {mark}: benchmarks/lean.py --table -->", f"<!-- /{mark} -->", lines)
    table = HERE.parent / "profiles" / "tested.jsonl"
    others = [line for line in table.read_text().splitlines()
              if '"id": "lean-' not in line and '"id": "drawn-' not in line]  # fmt: skip
    ours = [json.dumps(tested_row(record)) for record in kept.values()]
    ours += [json.dumps(tested_row(record, "drawn-")) for record in drawn_records()]
    table.write_text("\n".join([*others[:-1], *ours, others[-1]]) + "\n")


def main() -> None:
    """Run rows and keep them, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after this")
    parser.add_argument("--table", action="store_true", help="write tables from the kept rows")
    arguments = parser.parse_args()
    if arguments.table:
        write_tables(read_rows())
        return
    patterns = arguments.names or ["*"]
    wanted = [row for row in all_rows() if any(fnmatch(row.name, p) for p in patterns)]
    kept, started = read_rows(), time.monotonic()

    def work(row: Row) -> None:
        if time.monotonic() - started > arguments.seconds:
            print(f"{row.name}: no time left", flush=True)
            return
        record = run(row)
        print(brief(record), flush=True)
        if "failed" not in record:
            kept[row.name] = record

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(work, [row for row in wanted if not row.timed]))
    for row in wanted:
        if row.timed:
            work(row)
    write_rows(kept, arguments.out)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
