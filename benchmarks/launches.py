"""Whole trainings on two GPUs through NCCL: how each launch starts, goes on and ends.

    python benchmarks/launches.py --out FILE [--only NAME] [--device cpu]
    python benchmarks/launches.py --table          docs/several-gpus.md's table

lisa-tiny on the photographs of tests/, once on one GPU and then in two processes by each launcher,
with layers in host memory, and harmed: a process killed, stopped without a word, out of memory.
The losses of two processes are held against those of one (in bf16 the order of sums shows, and
Adam's first steps make it larger), a harmed run must end by itself and say why, and a resumed one
must end as the others do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from faults import PHOTOS, PLAN, ROOT
from rank_case import trainings
from rank_faults import path_of
from tables import put
from two_machines import losses

ROWS_FILE, DOCS = ROOT / "benchmarks" / "launches.jsonl", ROOT / "docs" / "several-gpus.md"
MARK = "<!-- benchmarks/launches.py -->", "<!-- /benchmarks/launches.py -->"
PATIENCE = 150  # seconds for one command; longer is a hang
SILENCE_SECONDS = 15  # LISA_GROUP_TIMEOUT where a process is stopped
MIDWAY = 3  # steps after which something happens
MODULE = ("-m", "trainer.cli")
STARTS = {
    "lisa-train": MODULE,
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *MODULE),
    "torchrun --max-restarts 1": ("-m", "torch.distributed.run", "--standalone",
                                  "--nproc-per-node", "2", "--max-restarts", "1", *MODULE),
    "accelerate launch": ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                          *MODULE),
}  # fmt: skip


@dataclass
class Launch:
    """One training: its folder, and what it printed."""

    place: Path
    plan: dict[str, Any]

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.place / "run"

    @property
    def log(self) -> Path:
        """All that it prints."""
        return self.place / "log"

    def start(self, how: str, *more: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start it, or resume it once there is a run."""
        self.place.mkdir(exist_ok=True)
        plan = self.place / "plan.json"
        plan.write_text(json.dumps(self.plan))
        begin = ["--plan", plan, "--data-dir", PHOTOS, "--output-dir", self.run, "--cache-dir",
                 self.place.parent / "cache", "--save-steps", "1"]  # fmt: skip
        arguments = ["--resume", self.run] if (self.run / "run.json").exists() else begin
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, *STARTS[how], *map(str, arguments), *more],
                                    stdout=log, stderr=log, cwd=ROOT,
                                    env=os.environ | variables)  # fmt: skip

    def midway(self, launcher: subprocess.Popen[bytes]) -> None:
        """Wait for some steps."""
        while launcher.poll() is None and len(losses(self.run)) < MIDWAY:
            time.sleep(0.01)


def ended(launcher: subprocess.Popen[bytes]) -> int:
    """Its exit code. Raises TimeoutError, and leaves nothing."""
    try:
        return launcher.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        raise TimeoutError(f"hung for {PATIENCE} s") from None


def harm(launch: Launch, how: str, number: signal.Signals, **variables: str) -> dict[str, Any]:
    """Signal one process midway; the exit code, and the seconds until the group had ended."""
    launcher = launch.start(how, **variables)
    launch.midway(launcher)
    victim = random.Random(0).choice(trainings(launcher))
    victim.send_signal(number)
    at = time.monotonic()
    code = ended(launcher)
    left = [process for process in [victim] if process.is_running()]
    for process in left:
        process.kill()
    return {"exit_code": code, "seconds_to_end": round(time.monotonic() - at, 1),
            "left": len(left), "said": told(launch)}  # fmt: skip


def told(launch: Launch) -> list[str]:
    """What lisa-train said of an end: its errors, and where it goes on."""
    lines = launch.log.read_text(errors="replace").replace(f"{launch.place}/", "").splitlines()
    said = ("error: ", "out of memory", "continuing", "interrupted")
    return sorted({line for line in lines if line.startswith(said)})


def whole(launch: Launch, how: str, *more: str, **variables: str) -> dict[str, Any]:
    """A training that nothing harms, or that goes on by itself."""
    started = time.monotonic()
    code = ended(launch.start(how, *more, **variables))
    return {"exit_code": code, "seconds": round(time.monotonic() - started, 1),
            "said": told(launch)}  # fmt: skip


def out_of_memory(launch: Launch, how: str) -> dict[str, Any]:
    """Rank 1 runs out of memory in its third micro-batch, once."""
    starved = f"trainer.step,accumulate,3,1,{launch.place / 'once'}"
    return whole(launch, how, PYTHONPATH=path_of("starved"), STARVED=starved)


def then_resume(first: dict[str, Any], launch: Launch, how: str, *more: str) -> dict[str, Any]:
    """The end of a harmed run after `--resume`."""
    return first | {"resumed": whole(launch, how, *more)["exit_code"]}


CASES: dict[str, Callable[[Launch], dict[str, Any]]] = {
    "lisa-train": lambda one: whole(one, "lisa-train"),
    "torchrun": lambda one: whole(one, "torchrun"),
    "accelerate launch": lambda one: whole(one, "accelerate launch"),
    "layers in host memory": lambda one: whole(one, "lisa-train"),
    "three questions a picture": lambda one: whole(one, "lisa-train"),
    "a process killed": lambda one: then_resume(
        harm(one, "lisa-train", signal.SIGKILL), one, "lisa-train"),
    "killed, resumed by one": lambda one: then_resume(
        harm(one, "lisa-train", signal.SIGKILL), one, "lisa-train", "--set", "processes=1"),
    "a process stopped": lambda one: then_resume(
        harm(one, "lisa-train", signal.SIGSTOP, LISA_GROUP_TIMEOUT=str(SILENCE_SECONDS)),
        one, "lisa-train"),
    "interrupted": lambda one: then_resume(interrupt(one), one, "lisa-train"),
    "out of memory": lambda one: out_of_memory(one, "lisa-train"),
    "out of memory under torchrun": lambda one: out_of_memory(one, "torchrun --max-restarts 1"),
    "a process killed under torchrun": lambda one: harm(
        one, "torchrun --max-restarts 1", signal.SIGKILL),
    "7B, NF4, 8 layers in host memory": lambda one: whole(one, "lisa-train"),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "layers in host memory": {
        "checkpointed_layers": "all",
        "host_layers": 2,
        "host_embeddings": True,
    },
    "three questions a picture": {"questions_per_picture": 3},
    "7B, NF4, 8 layers in host memory": {
        "model": "7b",
        "weights": "random",
        "quantization": "nf4",
        "checkpointed_layers": "all",
        "host_layers": 8,
        "host_embeddings": True,
    },
}


def interrupt(launch: Launch) -> dict[str, Any]:
    """Ctrl-C midway: it saves and ends."""
    launcher = launch.start("lisa-train")
    launch.midway(launcher)
    launcher.send_signal(signal.SIGINT)
    at = time.monotonic()
    return {"exit_code": ended(launcher), "seconds_to_end": round(time.monotonic() - at, 1),
            "said": told(launch)}  # fmt: skip


def plan_of(name: str, device: str, processes: int) -> dict[str, Any]:
    """The case's plan: six questions a step, whatever the number of processes."""
    rows = 6 // processes
    number = {"cuda": {"dtype": "bf16"}, "cpu": {"dtype": "fp32"}}[device]
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "qv"}  # ranks draw their own dropout
    schedule = PLAN["schedule"] | {"epochs": 4}
    plan = PLAN | number | SETTINGS.get(name, {}) | {
        "device": device, "processes": processes, "lora": lora, "schedule": schedule,
        "accumulation": rows, "effective_batch": 6, "max_val_samples": 2}  # fmt: skip
    if plan.get("questions_per_picture", 1) > 1:
        plan |= {"accumulation": 2 // processes}
    return plan


def run(out: Path, only: str | None, device: str) -> None:
    """Run the cases; a row each."""
    import torch

    facts = {"device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
             "torch": torch.__version__}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base, known = Path(folder), {}
        for name, act in CASES.items():
            if only and only not in name:
                continue
            settings = json.dumps(SETTINGS.get(name))
            if settings not in known:
                one = Launch(base / f"one-{len(known)}", plan_of(name, device, 1))
                assert not ended(one.start("lisa-train")), one.log.read_text()[-2000:]
                known[settings] = losses(one.run)
            launch = Launch(base / name.replace(" ", "-"), plan_of(name, device, 2))
            try:
                found = act(launch)
            except (TimeoutError, IndexError) as error:
                found = {"error": str(error)}
            mine, other = losses(launch.run), known[settings]
            off = max((abs(a / b - 1) for a, b in zip(mine, other, strict=False)), default=None)
            row = {"name": name, **facts, "steps": len(mine), "of": len(other),
                   "losses_off": off} | found  # fmt: skip
            print(json.dumps(row), flush=True)
            if len(mine) != len(other):
                print(launch.log.read_text(errors="replace")[-3000:], flush=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def write_table() -> None:
    """docs/several-gpus.md between its marks."""
    table = ["| case | exit code | the group ended after | exit code of `--resume` | steps | "
             "losses against one process's |", "|---|---|---|---|---|---|"]  # fmt: skip
    for row in map(json.loads, ROWS_FILE.read_text().splitlines()):
        after, resumed = row.get("seconds_to_end"), row.get("resumed")
        cells = [row["name"], row.get("exit_code", row.get("error")),
                 f"{after:.0f} s" if after else "", "" if resumed is None else resumed,
                 f"{row['steps']} of {row['of']}",
                 f"{row['losses_off']:.1e}" if row["losses_off"] is not None else ""]  # fmt: skip
        table.append(f"| {' | '.join(map(str, cells))} |")
    put(DOCS, *MARK, table)


def main() -> None:
    """Run, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--only")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return write_table()
    run(asked.out, asked.only, asked.device)


if __name__ == "__main__":
    main()
