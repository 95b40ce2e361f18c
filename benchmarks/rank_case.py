"""A training of several processes that benchmarks/rank_faults.py disturbs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from faults import PHOTOS, PLAN, ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            "localhost:0", "--local-addr", "127.0.0.1")  # fmt: skip
NAME = "RANK_FAULTS"  # variable by which the processes of a case are found
EFFECTIVE = 6  # samples a step, of one, two and three processes


@dataclass
class Case:
    """One training, how it is launched, and what has befallen it."""

    kind: str
    launch: str  # "lisa-train" or "torchrun"
    ranks: int
    then: int  # processes that it is resumed with
    rng: random.Random
    place: Path
    seconds: float  # of an undisturbed run
    befallen: list[str] = field(default_factory=list)
    resumed_with: int | None = None  # processes of the last resume by hand

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.place / "disk" / "run"

    @property
    def log(self) -> Path:
        """All that it prints."""
        return self.place / "log"

    def command(self) -> list[str]:
        """What starts it, or resumes it once there is a run."""
        begun = (self.run / "run.json").exists()
        count = self.then if begun and self.befallen else self.ranks
        if begun:
            self.resumed_with = count
            arguments = ["--resume", str(self.run)]
            if self.launch == "lisa-train":  # under torchrun the plan follows the launcher
                arguments += ["--set", f"processes={count}"]
        else:
            write_plan(self.place / "plan.json", count, dropout=self.then == self.ranks)
            folders = {"--plan": self.place / "plan.json", "--data-dir": PHOTOS,
                       "--output-dir": self.run, "--cache-dir": self.place / "cache"}  # fmt: skip
            arguments = [text for option, path in folders.items() for text in (option, str(path))]
            arguments += ["--save-steps", "1"]
        if self.launch == "lisa-train":
            return [sys.executable, "-P", "-m", "trainer.cli", *arguments]
        restarts = "2" if self.then == self.ranks else "0"
        return [sys.executable, *TORCHRUN, "--nproc-per-node", str(count), "--max-restarts",
                restarts, "-m", "trainer.cli", *arguments]  # fmt: skip

    def start(self, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start or resume it."""
        named = {NAME: str(self.place), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=ROOT,
                                    env=os.environ | named | (environment or {}))  # fmt: skip

    def wait(self, launcher: subprocess.Popen[bytes]) -> str:
        """Wait for a moment anywhere in the run, or, as often, in its training; which it was."""
        if self.rng.random() < 0.5:
            moment = self.rng.uniform(0, 0.8 * self.seconds)
            time.sleep(moment)
            return f"at {moment:.2f} s"
        steps, more = self.rng.randrange(8), self.rng.uniform(0, 0.5)
        while launcher.poll() is None and self.records() < steps:
            time.sleep(0.01)
        time.sleep(more)
        return f"{more:.2f} s after record {steps}"

    def records(self) -> int:
        """Steps and evaluations that the run has recorded."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def all(self) -> list[psutil.Process]:
        """Its processes that have not ended."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get(NAME) == str(self.place)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def batch(processes: int) -> dict[str, int]:
    """The fields of a plan that depend on the number of processes."""
    return {"processes": processes, "accumulation": EFFECTIVE // processes}


def write_plan(path: Path, processes: int, dropout: bool) -> None:
    """The same training by so many processes."""
    rate = 0.1 if dropout else 0.0
    lora = {"rank": 2, "alpha": 4, "dropout": rate, "targets": "qv"}
    schedule = {"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 3, "shape": "linear"}
    path.write_text(json.dumps(PLAN | batch(processes) | {
        "effective_batch": EFFECTIVE, "lora": lora, "schedule": schedule, "max_val_samples": 2,
        "workers": 0}))  # fmt: skip


def trainings(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that a launcher has started."""
    try:
        return psutil.Process(launcher.pid).children()
    except psutil.Error:
        return []
