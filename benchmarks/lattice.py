"""The configurations on which the forecast is judged: drawn, forecast, and then measured on a GPU.

    python benchmarks/lattice.py --draw            writes benchmarks/lattice.jsonl, no GPU needed
    python benchmarks/lattice.py [NAME ...] --out FILE     measures rows on this GPU, side by side

Every setting that moves memory is drawn at random, independently; a plan that contradicts itself or
is forecast above `LARGEST` is drawn again. Half of the rows are set aside here, by the same seed:
nothing may be tuned on them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tables import rows_of

from profiles.findings import PlanError
from profiles.models import model_profile
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "lattice.jsonl"
LARGEST = 24 * 2**30  # bytes of tensors: the largest card of the tables
MODELS = {
    "llava": {"tiny": 5, "7b": 20, "7b-v1": 7, "13b": 12},
    "qwen": {"qwen3-vl-2b": 3, "qwen3-vl-4b": 4, "qwen3-vl-8b": 3, "sa2va-qwen3-vl-4b": 1},
}


def draw(rng: random.Random, models: dict[str, int], compiled: bool = False) -> dict[str, Any]:
    """One row: settings, text tokens and masks of a sample."""
    model = rng.choices(list(models), list(models.values()))[0]
    profile = model_profile(model)
    layers = profile.decoder.layers
    checkpointed = rng.choice([0, layers // 2, layers, layers])
    rank = rng.choice([0, 4, 8, 16, 32, 64])
    targets = rng.choice(["qv", "attention", "all-linear"])
    lora = {"rank": rank, "alpha": 2 * rank, "dropout": rng.choice([0.0, 0.05]), "targets": targets}
    middle = "projector" if profile.has_projector else "mask_decoder"
    train = rng.choice([["mask_decoder", "text_hidden_fcs", "token_rows"],
                        [middle, "text_hidden_fcs", "token_rows"],
                        ["mask_decoder", "text_hidden_fcs", "embeddings"]])  # fmt: skip
    whole = "embeddings" in train
    settings = {
        "model": model, "weights": "random", "device": "cuda", "dtype": "bf16",
        "quantization": rng.choice(["nf4", "nf4", "int8", "none"]),
        "lora": lora if rank else None,
        "train": train,
        "micro_batch": rng.choice([1, 2, 4, 8, 16]),
        "accumulation": rng.choice([1, 2]),
        "checkpointed_layers": checkpointed,
        "cached_encoders": rng.choice([["sam", "clip"], ["sam", "clip"], ["sam"], []]),
        "host_embeddings": not whole and rng.random() < 0.5,
        "host_layers": rng.choice([0, 0, checkpointed // 4, checkpointed]),
        "logits": rng.choice(["supervised", "supervised", "all"]),
        "mask_loss_resolution": rng.choice([256, 256, 512, 1024]),
        "optimizer": rng.choice(["adamw", "adamw", "paged_adamw"]),
        "optimizer_state": rng.choice(["fp32", "8bit"]),
        "allocator": rng.choice(["", "expandable_segments:True"]),
        "tokens": {"max_text_tokens": 1500},
    }  # fmt: skip
    if profile.tokens_vary:
        settings["max_pixels"] = rng.choice([256, 576, 1024, 1024, 1568]) * 1024
    if compiled:
        settings |= {"compile": True, "optimizer": "adamw", "questions_per_picture": 1}
    text = round(32 * (1500 / 32) ** rng.random())
    return {"settings": settings, "text": text, "masks": rng.choice([1, 1, 2, 4])}


def rehearse(row: dict[str, Any], plan: Plan, *options: str) -> dict[str, Any] | str:
    """The measurement of a rehearsal in a fresh process, or its error message."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json())
        command = [sys.executable, "-m", "trainer.rehearse", str(path), *options,
                   "--text-tokens", str(row["text"]), "--masks", str(row["masks"])]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stderr[-1500:] if done.returncode else json.loads(done.stdout)


def fake(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its forecast, or None if it cannot run or is too large."""
    try:
        plan = Plan.parse(row["settings"])
    except PlanError:
        return None
    from trainer.rehearse.fake import fake_rehearsal

    found, _ = fake_rehearsal(plan, row["text"], row["masks"], (9, 0))
    peak = found.peak_allocated_bytes or LARGEST + 1
    print(f"{plan.model:6} {peak / 2**30:6.2f} GiB", flush=True)
    return row | {"forecast_before_bytes": peak} if peak <= LARGEST else None


class Room:
    """Bytes of the card that rows running side by side share."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes, and hold them."""
        with self.changed:
            self.changed.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.changed.notify_all()


def measure(patterns: list[str], out: Path, room_bytes: int, seconds: float) -> None:
    """Measure the drawn rows on this GPU, as many side by side as it holds."""
    room, started, lock = Room(room_bytes), time.monotonic(), threading.Lock()

    def work(row: dict[str, Any]) -> None:
        with room.taken(round(1.1 * row["forecast_before_bytes"]) + 2**30):
            if time.monotonic() - started > seconds:
                print(f"{row['name']}: no time left", flush=True)
                return
            found = rehearse(row, Plan.parse(row["settings"]), "--steps", "1")
        if isinstance(found, str):
            print(row["name"], found, flush=True)
            return
        timings = ("step_seconds", "samples_per_second", "model_flops_utilisation", "load_seconds")
        found |= dict.fromkeys(timings)  # side by side, they mean nothing
        date = datetime.date.today().isoformat()
        with lock, out.open("a") as file:
            file.write(json.dumps({"name": row["name"], "date": date, "measurement": found}) + "\n")
        peak = (found["peak_allocated_bytes"] or 0) / 2**30
        print(f"{row['name']} {found['verdict']} {peak:.2f} GiB", flush=True)

    rows = rows_of(ROWS_FILE)
    rows = [row for row in rows if any(fnmatch(row["name"], p) for p in patterns or ["*"])]
    rows.sort(key=lambda row: -row["forecast_before_bytes"])  # what needs much room goes first
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(work, rows))
    print(f"{time.monotonic() - started:.0f} s")


def main() -> None:
    """Draw rows beside those that stand, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns such as 'draw-4*'")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--count", type=int, default=44)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--compiled", action="store_true", help="draw plans of compiled layers")
    parser.add_argument("--family", choices=list(MODELS), default="llava")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "lattice_measured.jsonl")
    parser.add_argument("--room-gib", type=float, default=70)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after this")
    arguments = parser.parse_args()
    if not arguments.draw:
        measure(
            arguments.names, arguments.out, round(arguments.room_gib * 2**30), arguments.seconds
        )
        return
    rng = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    standing = ROWS_FILE.read_text().splitlines() if ROWS_FILE.exists() else []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        while len(rows) < arguments.count:
            drawn = [draw(rng, MODELS[arguments.family], arguments.compiled) for _ in range(8)]
            rows += [row for row in pool.map(fake, drawn) if row is not None]
    rows = rows[: arguments.count]
    held = set(rng.sample(range(len(rows)), len(rows) // 2))
    first = 1 + max((int(json.loads(line)["name"][5:]) for line in standing), default=-1)
    lines = [json.dumps({"name": f"draw-{first + index:02}", "held_out": index in held}
                        | row) for index, row in enumerate(rows)]  # fmt: skip
    ROWS_FILE.write_text("\n".join([*standing, *lines]) + "\n")


if __name__ == "__main__":
    main()
