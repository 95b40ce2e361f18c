"""Disturb trainings of two and three processes at random moments: all must end as if undisturbed.

    python benchmarks/rank_faults.py [--runs 42] [--seed 0] [--processes 1] [--rows FILE]
    python benchmarks/rank_faults.py --table

lisa-tiny on the CPU (gloo), started by lisa-train itself or by `torchrun`, whose `--max-restarts`
starts all processes again by itself. Half of the runs are resumed with as many processes as before:
their trained weights and records must be those of an undisturbed run, bit for bit. The others are
resumed with one more or less, without dropout (which each process draws for itself): the losses
must be within 1e-4. After every disturbance no process may be left after two seconds, and every
checkpoint must be whole. Each run is a row in --rows as soon as it has ended; what has a row there
is not run again. --table writes docs/recovery.md's table from benchmarks/faults.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from faults import DOCS, MOUNT, ROOT, ROWS_FILE, can_mount, outcome, used_kib
from rank_case import Case, trainings
from tables import put
from trials import options, own_folder, rows_in, side_by_side
from two_machines import losses

from trainer.run.checkpoint_files import altered

MARK = "<!-- benchmarks/rank_faults.py -->", "<!-- /benchmarks/rank_faults.py -->"
PATIENCE = 300  # seconds for one command: longer is a hang
LEFT_SECONDS = 2  # that processes may outlive their launcher
CLOSE = 1e-4  # of losses, relatively
PLACES = (("trainer.step", "accumulate", 5), ("trainer.step", "update", 5),
          ("trainer.run.validation", "predict", 2), ("trainer.run.run", "build", 1),
          ("trainer.run.sample_sets", "prepare_caches", 1))  # fmt: skip
# A trace of this project's own code: an error that nobody turned into a message.
TRACE = re.compile(r'File "[^"]*/(trainer|profiles|advisor)/[^\n]*\n[^\n]*\n.*', re.DOTALL)


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Raises TimeoutError."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"hung for {PATIENCE} s") from None


# A disturbance starts a training and harms it; it returns the launcher's exit code.


def kill_rank(case: Case) -> int:
    """SIGKILL for one of the processes, at any moment after they were started."""
    launcher = case.start()
    moment = case.wait(launcher)
    while launcher.poll() is None and not trainings(launcher):
        time.sleep(0.02)
    if ranks := trainings(launcher):
        case.befallen.append(f"a process killed {moment}")
        with suppress(psutil.NoSuchProcess):
            case.rng.choice(ranks).kill()
    return ended(launcher)


def kill_in_a_save(case: Case) -> int:
    """SIGKILL for all, launcher last, while a checkpoint is half written."""
    launcher, saves = case.start(), case.rng.randint(1, 5)
    seen: set[int] = set()
    while launcher.poll() is None:
        for path in case.run.glob(".last-*"):
            with suppress(FileNotFoundError):  # it has its name by now
                seen.add(path.stat().st_ino)
        if len(seen) >= saves:
            case.befallen.append(f"all killed in save {saves}")
            for process in trainings(launcher):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.kill()
            break
    return ended(launcher)


def signal_launcher(case: Case, number: int) -> int:
    """A signal for the launcher, at any moment."""
    launcher = case.start()
    moment = case.wait(launcher)
    if launcher.poll() is None:
        case.befallen.append(f"{signal.Signals(number).name} {moment}")
        launcher.send_signal(number)
    return ended(launcher)


def out_of_memory(case: Case) -> int:
    """One process runs out of memory, once: there is one smaller plan."""
    module, name, most = case.rng.choice(PLACES)
    rank, number = case.rng.randrange(case.ranks), case.rng.randint(1, most)
    case.befallen.append(f"{name} of rank {rank} ran out of memory at call {number}")
    starved = f"{module},{name},{number},{rank},{case.place / 'once'}"
    return ended(case.start({"PYTHONPATH": path_of("starved"), "STARVED": starved}))


def path_of(folder: str) -> str:
    """PYTHONPATH with one of benchmarks' folders first."""
    return os.pathsep.join([str(ROOT / "benchmarks" / folder), os.environ.get("PYTHONPATH", "")])


def full_disk(case: Case) -> int:
    """The run's disk is full at some moment; then there is room again."""
    disk, size = case.place / "disk", case.rng.randrange(64, 8192)  # KiB
    subprocess.run(["mount", "-o", f"remount,size={size + used_kib(disk)}k", disk], check=True)
    case.befallen.append(f"{size} KiB left on the disk")
    try:
        return ended(case.start())
    finally:
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


DISTURBANCES: dict[str, Callable[[Case], int]] = {
    "a process killed": kill_rank,
    "all killed in a save": kill_in_a_save,
    "launcher killed": lambda case: signal_launcher(case, signal.SIGKILL),
    "launcher terminated": lambda case: signal_launcher(case, signal.SIGTERM),
    "launcher interrupted": lambda case: signal_launcher(case, signal.SIGINT),
    "a process out of memory": out_of_memory,
    "disk of several full": full_disk,
}


def left_behind(case: Case) -> str:
    """What must not be left when the launcher has ended; '' if nothing is."""
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := case.all()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        words = [" ".join(process.cmdline())[-80:] for process in left if process.is_running()]
        for process in left:
            process.kill()
        return f"{len(left)} processes left after {LEFT_SECONDS} s: {words}"
    seen = [path for name in ("last", "last-1", "best") if (path := case.run / name).exists()]
    broken = [f"{path.name}: {wrong}" for path in seen if (wrong := altered(path))]
    return f"half a checkpoint: {broken}" if broken else ""


def wrong_end(case: Case, known: dict[str, Any]) -> str:
    """What is wrong with a run that has ended; '' if nothing is."""
    if not (case.run / "summary.json").exists():
        return "ended without a summary"
    if hidden := list(case.run.glob(".last-*")):
        return f"left over: {hidden}"
    if case.then == case.ranks:
        same = outcome(case.run) == known[str(case.ranks)]
        return "" if same else "other weights or records"
    mine, other = losses(case.run), known["losses"]
    off = max((abs(a / b - 1) for a, b in zip(mine, other, strict=False)), default=1.0)
    return "" if len(mine) == len(other) and off < CLOSE else f"losses {mine} against {other}"


def disturbed(case: Case, known: dict[str, Any]) -> str:
    """Disturb a run once or twice and resume it until it ends; what is wrong, '' if nothing is."""
    times = 1 if case.kind == "a process out of memory" else case.rng.randint(1, 2)
    for attempt in range(times + 1):
        before = case.log.stat().st_size if case.log.exists() else 0
        harmed = attempt < times
        code = DISTURBANCES[case.kind](case) if harmed else ended(case.start())
        said = case.log.read_bytes()[before:].decode(errors="replace")
        if wrong := left_behind(case):
            return f"{wrong}; {said[-800:]}"
        if trace := TRACE.search(said):
            return f"a trace: {trace[0][:1500]}"
        if code == 0:
            return wrong_end(case, known)
        if not harmed:
            return f"exit code {code}: {said[-1500:]}"
        if case.kind.endswith("out of memory") and "lisa-train --resume" not in said:
            return f"exit code {code} without a word about --resume: {said[-800:]}"
    return f"did not end in {times + 1} attempts"


def undisturbed(base: Path, ranks: int, dropout: bool) -> Case:
    """A training to compare with; raises RuntimeError."""
    place = base / f"whole-{ranks}-{dropout}"
    (place / "disk").mkdir(parents=True)
    then = ranks if dropout else 0
    case = Case("", "lisa-train", ranks, then, random.Random(0), place, 0.0)
    started = time.monotonic()
    if code := ended(case.start()):
        raise RuntimeError(f"exit code {code}: {case.log.read_text()}")
    case.seconds = time.monotonic() - started
    return case


def case_of(number: int, kinds: list[str], base: Path, seed: int, known: dict[str, Any]) -> Case:
    """The case with that number: each kind by turns under both launches and with both counts."""
    kind, turn = kinds[number % len(kinds)], number // len(kinds)
    rng = random.Random(f"{seed} {kind} {turn}")
    ranks = 2 + (turn // 2) % 2
    other = rng.choice([n for n in (1, 2, 3) if n != ranks])
    then = ranks if (turn + number % len(kinds)) % 2 == 0 else other
    launch = ("lisa-train", "torchrun")[turn % 2 if turn < 4 else rng.randrange(2)]
    seconds = known[f"seconds of {ranks}"]
    return Case(kind, launch, ranks, then, rng, base / f"case-{number}", seconds)


def work(
    numbers: list[int], kinds: list[str], base: Path, seed: int, known: dict[str, Any], kept: Path
) -> list[dict[str, Any]]:
    """Run some cases in this process, one after the other; write each one's row at once."""
    rows = []
    for number in numbers:
        case = case_of(number, kinds, base, seed, known)
        disk = case.place / "disk"
        disk.mkdir(parents=True)
        mounts = case.kind == "disk of several full"
        if mounts:
            subprocess.run([*MOUNT, disk], check=True)
        started = time.monotonic()
        try:
            why = disturbed(case, known)
        except TimeoutError as error:
            why = f"{error}: {case.log.read_text()[-1000:]}"
            for process in case.all():
                process.kill()
        finally:
            if mounts:
                subprocess.run(["umount", "-l", disk], check=True)
        row = {"kind": case.kind, "number": number, "launch": case.launch, "ranks": case.ranks,
               "resumed_with": case.resumed_with, "ended": "LOST" if why else "same", "why": why,
               "befallen": case.befallen,
               "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return rows


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line a kind."""
    lines = ["| disturbed by | runs | disturbances | by lisa-train / torchrun | 2 / 3 processes | "
             "resumed with another number | as it should be | lost |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind in (*DISTURBANCES, "all"):
        mine = [row for row in rows if row["kind"] == kind or kind == "all"]
        lost, befallen = (sum(row["ended"] == "LOST" for row in mine),
                          sum(len(row["befallen"]) for row in mine))  # fmt: skip
        own = sum(row["launch"] == "lisa-train" for row in mine)
        two = sum(row["ranks"] == 2 for row in mine)
        other = sum(row["resumed_with"] not in (None, row["ranks"]) for row in mine)
        cells = [kind, len(mine), befallen, f"{own} / {len(mine) - own}",
                 f"{two} / {len(mine) - two}", other, len(mine) - lost, lost]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def of_ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that this script wrote."""
    return [row for row in rows if row["kind"] in DISTURBANCES]


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/recovery.md, of the rows that this script wrote."""
    put(DOCS, *MARK, table_of(of_ranks(rows)))


def main() -> None:
    """Run them all; exit code 1 if anything was lost."""
    parser = options(__doc__, processes=1)
    parser.add_argument("--runs", type=int, default=42)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*DISTURBANCES])
    asked = parser.parse_args()
    if asked.table:
        return write_table(rows_in(ROWS_FILE))
    with own_folder() as base:
        known: dict[str, Any] = {}
        for ranks in (2, 3):
            whole = undisturbed(base, ranks, dropout=True)
            known |= {str(ranks): outcome(whole.run), f"seconds of {ranks}": whole.seconds}
        known["losses"] = losses(undisturbed(base, 1, dropout=False).run)
        print({name: value for name, value in known.items() if "seconds" in name}, flush=True)
        kinds = [asked.only] if asked.only else list(DISTURBANCES)
        if "disk of several full" in kinds and not can_mount(base):
            print("full disks: left out, small disks cannot be made without root", flush=True)
            kinds.remove("disk of several full")
        many, kept = asked.processes, asked.rows or base / "rows.jsonl"
        rows = of_ranks(rows_in(kept))
        left = sorted({*range(asked.runs)} - {row["number"] for row in rows})
        rows += side_by_side(work, many, left, kinds, base, asked.seed, known, kept)
    print("\n".join(table_of(rows)))
    sys.exit(any(row["ended"] == "LOST" for row in rows))


if __name__ == "__main__":
    main()
