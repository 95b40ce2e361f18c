"""Disturb tiny trainings at random, seeded moments: all must end as if undisturbed.

    python benchmarks/faults.py [--runs 208] [--seed 0] [--processes 2] [--rows FILE] [--only KIND]
    python benchmarks/faults.py --table

Each run is `lisa-train` in a process of its own, disturbed up to three times and resumed until it
ends. Its trained weights and records are then held against those of a run that nothing disturbed:
bit for bit. Each is a row in --rows as soon as it has ended; what has a row there is not run again,
so runs that were cut off go on. --table writes docs/recovery.md's table from
benchmarks/faults.jsonl. To save time the processes
are forked from one that has imported torch; one that runs out of memory becomes a fresh one, as it
does for a user.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
from tables import put
from trials import options, own_folder, rows_in, side_by_side, still_to_run

ROOT = Path(__file__).resolve().parents[1]
DOCS, ROWS_FILE = ROOT / "docs" / "recovery.md", ROOT / "benchmarks" / "faults.jsonl"
MARK = "<!-- benchmarks/faults.py -->", "<!-- /benchmarks/faults.py -->"
PHOTOS = ROOT / "tests" / "photos"
ATTEMPTS = 8
MOUNT = ("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs")
# What a resumed run says if nothing can be resumed, as docs/recovery.md has it.
CLEAR = ("no checkpoint of this run is whole", "no run to resume")
PLAN = {
    "model": "tiny", "device": "cpu", "dtype": "fp32", "quantization": "none",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "qv"}, "mask_loss_resolution": 64,
    "micro_batch": 1, "accumulation": 2, "effective_batch": 2, "workers": 1,
    "schedule": {"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 2, "shape": "linear"},
}  # fmt: skip


@dataclass
class Case:
    """One training, its folders, and what has befallen it."""

    kind: str
    rng: random.Random
    place: Path
    seconds: float  # of an undisturbed run
    befallen: list[str] = field(default_factory=list)
    started: bool = False

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.place / "disk" / "run"

    def arguments(self) -> list[str]:
        """lisa-train's command: to begin, or to resume."""
        if self.started and (self.run / "run.json").exists():
            return ["--resume", str(self.run)]
        self.started = True
        shutil.rmtree(self.run, ignore_errors=True)
        folders = {"--plan": self.place / "plan.json", "--data-dir": PHOTOS,
                   "--output-dir": self.run, "--cache-dir": self.place / "cache"}  # fmt: skip
        named = [text for option, path in folders.items() for text in (option, str(path))]
        return [*named, "--save-steps", "1"]

    def start(self, plant: Callable[[], None] = lambda: None) -> int:
        """Fork a process that trains; its number. `plant` runs in it first."""
        trains = forked.lisa_train(*self.arguments())

        def work() -> None:
            plant()
            trains()

        return forked.fork(work, self.place / "log")

    def moment(self) -> float:
        """Seconds after the start, anywhere in the run."""
        return self.rng.uniform(0, 1.05 * self.seconds)


# A disturbance starts a process and harms it; it returns the exit code.


def kill(case: Case, number: int = signal.SIGKILL) -> int:
    """A signal at any moment."""
    pid, moment = case.start(), case.moment()
    time.sleep(moment)
    case.befallen.append(f"{signal.Signals(number).name} at {moment:.2f} s")
    os.kill(pid, number)
    return forked.end(pid)


def terminate(case: Case) -> int:
    """SIGTERM: saves and ends."""
    return kill(case, signal.SIGTERM)


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit, cut off the end, empty, or remove."""
    content = bytearray(path.read_bytes())
    how = rng.choice(("flipped", "cut", "emptied", "removed"))
    if how == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "removed":
        path.unlink()
    else:
        path.write_bytes(content[: rng.randrange(max(1, len(content))) if how == "cut" else 0])
    return f"{path.parent.name}/{path.name} {how}"


def damage_checkpoint(case: Case) -> int:
    """Killed, and then a file of its newest checkpoint is damaged."""
    code = kill(case)
    files = sorted(case.run.glob("last/*"))
    if files and code:  # not where it had ended by then
        case.befallen.append(damage(case.rng.choice(files), case.rng))
    return code


def damage_cache(case: Case) -> int:
    """Damage some cached features while it runs, or after it was killed."""
    pid, moment = case.start(), case.moment()
    time.sleep(moment)
    files = sorted((case.place / "cache").glob("*/*.safetensors"))
    for path in case.rng.sample(files, min(len(files), case.rng.randrange(1, 6))):
        if path.exists():
            case.befallen.append(damage(path, case.rng))
    if case.rng.random() < 0.5:
        os.kill(pid, signal.SIGKILL)
    return forked.end(pid)


def out_of_memory(case: Case) -> int:
    """Raise a full card's error at any place that can; once, as there is one smaller plan."""
    if any("ran out" in text for text in case.befallen):
        return kill(case)
    module, name, most = case.rng.choice((
        ("step", "accumulate", 8), ("step", "update", 8), ("run.validation", "predict", 9),
        ("run.run", "build", 1), ("run.run", "prepare_caches", 1),
    ))  # fmt: skip
    number = case.rng.randint(1, most)
    case.befallen.append(f"{name} ran out of memory at call {number}")

    def plant() -> None:
        import importlib

        import torch

        owner = importlib.import_module(f"trainer.{module}")
        real, calls = getattr(owner, name), [0]

        def failing(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
            return real(*arguments, **named)

        setattr(owner, name, failing)

    return forked.end(case.start(plant))


def driver_fails(case: Case) -> int:
    """Out of memory, and NVML cannot be asked about it."""
    os.environ["PYTHONPATH"] = str(ROOT / "benchmarks" / "faulty")
    try:
        case.befallen.append("NVML fails")
        return out_of_memory(case)
    finally:
        del os.environ["PYTHONPATH"]


def worker_dies(case: Case) -> int:
    """Kill a data worker, as the system does when host memory runs out."""
    import psutil

    pid = case.start()
    until, wait = time.monotonic() + forked.PATIENCE, case.rng.uniform(0, case.seconds / 4)
    while time.monotonic() < until and psutil.pid_exists(pid):
        try:
            workers = psutil.Process(pid).children()
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        if workers and wait <= 0:
            workers[0].kill()
            case.befallen.append("a data worker was killed")
            break
        wait -= 0.01 if workers else 0.0
        time.sleep(0.01)
    return forked.end(pid)


def full_disk(case: Case) -> int:
    """Fill the run's disk at some moment; then there is room again."""
    disk = case.place / "disk"
    size = case.rng.randrange(64, 8192)  # KiB; a run takes some 7 MiB
    subprocess.run(["mount", "-o", f"remount,size={size + used_kib(disk)}k", disk], check=True)
    case.befallen.append(f"{size} KiB left on the disk")
    try:
        return forked.end(case.start())
    finally:
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


def used_kib(folder: Path) -> int:
    """KiB used on the disk that a folder is on."""
    return shutil.disk_usage(folder).used // 1024


DISTURBANCES: dict[str, Callable[[Case], int]] = {
    "killed": kill, "terminated": terminate, "disk full": full_disk,
    "checkpoint damaged": damage_checkpoint, "cache damaged": damage_cache,
    "out of memory": out_of_memory, "NVML fails": driver_fails, "data worker dies": worker_dies,
}  # fmt: skip
ALLOWED = {"killed": {-9}, "terminated": {-15, 130}, "checkpoint damaged": {-9},
           "cache damaged": {-9, 2}, "disk full": {1}}  # fmt: skip


def outcome(run: Path) -> str:
    """A hash of the trained weights and of all records except seconds and memory."""
    digest = hashlib.sha256((run / "last" / "trained.safetensors").read_bytes())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in ("step_seconds", "memory_bytes"):
            row.pop(name, None)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def disturbed(case: Case, known: str) -> tuple[str, str]:
    """Disturb and resume a run until it ends; returns how it ended, with a note."""
    log = case.place / "log"
    times = case.rng.randint(1, 3)
    for attempt in range(ATTEMPTS):
        before = log.stat().st_size if log.exists() else 0
        does_harm = attempt < times
        try:
            code = DISTURBANCES[case.kind](case) if does_harm else forked.end(case.start())
        except TimeoutError as error:
            return "LOST", str(error)
        said = log.read_bytes()[before:].decode(errors="replace")
        if "Traceback" in said and code != -9:  # what the children of a killed one say is no matter
            return "LOST", said[said.index("Traceback") :][-1500:]
        if code == 0:
            if not (case.run / "summary.json").exists():
                return "LOST", "ended without a summary"
            same = outcome(case.run) == known
            return ("same", "") if same else ("LOST", "other weights or records")
        if code == 2 and any(text in said for text in CLEAR):
            return "clear error", said.strip().splitlines()[-1]
        if not does_harm:
            return "LOST", f"exit code {code}: {said[-1500:]}"
        if code not in ALLOWED.get(case.kind, {0}) | {-9}:
            return "LOST", f"exit code {code}: {said[-1500:]}"
    return "LOST", f"did not end in {ATTEMPTS} attempts"


def work(
    cases: list[tuple[str, int]], base: Path, known: str, seconds: float, seed: int, kept: Path
) -> list[dict[str, Any]]:
    """Run some cases in this process, one after the other; write each one's row at once."""
    found = []
    for kind, number in cases:
        place = base / f"{kind.replace(' ', '-')}-{number}"
        (place / "disk").mkdir(parents=True)
        (place / "plan.json").write_text(json.dumps(PLAN))
        shutil.copytree(base / "cache", place / "cache")
        if kind == "disk full":
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place / "disk"], check=True
            )
        case = Case(kind, random.Random(f"{seed} {kind} {number}"), place, seconds)
        started = time.monotonic()
        try:
            ended, why = disturbed(case, known)
        finally:
            if kind == "disk full":
                subprocess.run(["umount", "-l", place / "disk"], check=True)
        row = {"kind": kind, "number": number, "ended": ended, "why": why,
               "befallen": case.befallen, "seconds": time.monotonic() - started}  # fmt: skip
        found.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row) if ended == "LOST" else f"{kind} {number}: {ended}", flush=True)
        if ended != "LOST":
            shutil.rmtree(place)
    return found


def can_mount(base: Path) -> bool:
    """Whether small disks can be made here, which takes root."""
    probe = base / "probe"
    probe.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", probe], capture_output=True
    )
    if done.returncode == 0:
        subprocess.run(["umount", probe], check=True)
    return done.returncode == 0


COUNTED = ("runs", "disturbances", "same", "clear error", "LOST")


def counts_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind: how many runs and disturbances, and how the runs ended."""
    rows = []
    for kind in DISTURBANCES:
        if mine := [run for run in runs if run["kind"] == kind]:
            row = {"kind": kind, "runs": len(mine)}
            row["disturbances"] = sum(len(run["befallen"]) for run in mine)
            rows.append(row | {end: sum(run["ended"] == end for run in mine)
                               for end in COUNTED[2:]})  # fmt: skip
    return rows


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line a kind, from a row a run."""
    rows = counts_of(rows)
    total = {"kind": "all"} | {name: sum(row[name] for row in rows) for name in COUNTED}
    return ["| disturbed by | runs | disturbances | same as undisturbed | clear error | lost |",
            "|---|---|---|---|---|---|",
            *(f"| {row['kind']} | {' | '.join(str(row[name]) for name in COUNTED)} |"
              for row in [*rows, total])]  # fmt: skip


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/recovery.md."""
    put(DOCS, *MARK, table_of(rows))


def main() -> None:
    """Run them all; exit code 1 if anything was lost."""
    parser = options(__doc__, processes=2)
    parser.add_argument("--runs", type=int, default=208)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*DISTURBANCES])
    arguments = parser.parse_args()
    if arguments.table:
        return write_table(rows_in(ROWS_FILE))
    import torch

    from advisor import fallback  # noqa: F401  what the forked processes would each import

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with own_folder() as base:
        first = Case("", random.Random(0), base, 0.0)
        (base / "plan.json").write_text(json.dumps(PLAN))
        (base / "disk").mkdir()
        if forked.end(first.start()):
            sys.exit((base / "log").read_text())
        first.started = False
        started = time.monotonic()
        forked.end(first.start())  # now that the features are cached
        seconds, known = time.monotonic() - started, outcome(first.run)
        print(f"an undisturbed run takes {seconds:.1f} s", flush=True)
        kinds = [arguments.only] if arguments.only else list(DISTURBANCES)
        if "disk full" in kinds and not can_mount(base):
            print("disk full: left out, small disks cannot be made without root", flush=True)
            kinds.remove("disk full")
        cases = [(kinds[n % len(kinds)], n // len(kinds)) for n in range(arguments.runs)]
        many, kept = arguments.processes, arguments.rows or base / "rows.jsonl"
        rows, cases = still_to_run(cases, kept)
        rows += side_by_side(work, many, cases, base, known, seconds, arguments.seed, kept)
    lines = table_of(rows)
    print("\n".join(lines))
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(row["ended"] == "LOST" for row in rows))


if __name__ == "__main__":
    main()
