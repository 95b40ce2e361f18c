"""Two commands at once on one run folder, and launchers that are killed: fifty times each.

    python benchmarks/races.py [--times 50] [--processes 1] [--only starters|resumers|launchers]
    python benchmarks/races.py --table          docs/recovery.md's table

*starters*: two trainings begin together on one --output-dir; one trains, the other is refused and
names the first. *resumers*: the same with two --resume of a run that was killed. *launchers*: a
training in two or three processes whose launcher is killed (SIGKILL) at a random moment; 2 s later
none of its processes is left, and --resume ends as the undisturbed run does, bit for bit.
Each race is a row in --rows as soon as it has ended; what has a row there is not run again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import psutil
from crash_scenes import PHOTOS, PLAN, ROOT
from crashes import DOCS, steady
from tables import put
from trials import options, own_folder, rows_in, side_by_side, still_to_run

ROWS_FILE = ROOT / "benchmarks" / "races.jsonl"
GROUPS = (2, 3)
MARK = "<!-- benchmarks/races.py -->", "<!-- /benchmarks/races.py -->"


def arguments(place: Path, name: str) -> list[str]:
    """Of a training into a folder of that name."""
    folders = {"--output-dir": place / name, "--cache-dir": place / "cache", "--data-dir": PHOTOS,
               "--plan": place / "plan.json"}  # fmt: skip
    named = [text for option, path in folders.items() for text in (option, str(path))]
    return [*named, "--save-steps", "1"]


def outcome(run: Path) -> dict[str, bytes]:
    """What decides of a run that has ended."""
    names = ("last/trained.safetensors", "best/trained.safetensors", "metrics.jsonl",
             "summary.json")  # fmt: skip
    return {name: steady(run / name) for name in names}


def two_at_once(run: Path, command: list[str], delay: float) -> list[tuple[int, str]]:
    """Exit codes and text of two processes with the same command on one run folder."""
    found: list[tuple[int, str]] = [(0, ""), (0, "")]

    def one(number: int) -> None:
        time.sleep(delay * number)
        log = run.with_name(f"{run.name}-log-{number}")
        code = forked.run(forked.lisa_train(*command), log)
        found[number] = code, log.read_text(errors="replace")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def judge(found: list[tuple[int, str]], run: Path, known: dict[str, bytes]) -> str:
    """What is wrong with the end of two at once; '' if nothing is."""
    codes = sorted(code for code, _ in found)
    refused = [said for code, said in found if code == 2]
    late = [said for code, said in found if code == 0 and "run is complete" in said]
    if codes == [0, 2] and not any("process " in said or "exists already" in said
                                   for said in refused):  # fmt: skip
        return f"refused for another reason: {refused}"
    if codes != [0, 2] and not (codes == [0, 0] and late):
        return f"exit codes {codes}: {[said[-400:] for _, said in found]}"
    return "" if outcome(run) == known else "mixed: another end than undisturbed"


def starters(run: Path, known: dict[str, bytes], rng: random.Random) -> str:
    """Two trainings begin at once."""
    command = arguments(run.parent, run.name)
    return judge(two_at_once(run, command, rng.uniform(0, 1)), run, known)


def resumers(run: Path, known: dict[str, bytes], rng: random.Random) -> str:
    """Two resume the same run."""
    shutil.copytree(run.with_name("begun"), run)
    found = two_at_once(run, ["--resume", str(run)], rng.uniform(0, 1))
    return judge(found, run, known)


def launchers(run: Path, known: dict[str, bytes], rng: random.Random) -> str:
    """A launcher of two or three processes is killed."""
    count = rng.choice(GROUPS)
    with run.with_name(f"{run.name}-log").open("wb") as log:
        launcher = subprocess.Popen(group(run, count), stdout=log, stderr=log, cwd=ROOT)
        time.sleep(rng.uniform(1, 14))
        children = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    _, left = psutil.wait_procs(children, timeout=2)
    if left:
        for child in left:
            child.kill()
        return f"{len(left)} of {len(children)} processes left after 2 s"
    if not (run / "run.json").exists():
        return ""  # before there was a run
    done = subprocess.run([sys.executable, "-m", "trainer.cli", "--resume", str(run)],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr[-600:]}"
    whole = outcome(run.with_name(f"whole-{count}"))
    return "" if outcome(run) == whole else f"{count} processes: another end than undisturbed"


def group(run: Path, count: int) -> list[str]:
    """A training into a run folder by so many processes."""
    return [sys.executable, "-m", "trainer.cli", *arguments(run.parent, run.name),
            "--set", f"processes={count}"]  # fmt: skip


Race = Callable[[Path, dict[str, bytes], random.Random], str]
RACES: dict[str, Race] = {"starters": starters, "resumers": resumers, "launchers": launchers}
TITLES = {"starters": "two trainings begun together in one folder",
          "resumers": "two `--resume` of one run",
          "launchers": "launcher of 2 or 3 processes killed"}  # fmt: skip


def work(
    cases: list[tuple[str, int]], place: Path, known: dict[str, bytes], kept: Path
) -> list[dict[str, Any]]:
    """Run some races one after the other, each in its own folder; write each one's row at once."""
    rows = []
    for kind, number in cases:
        run = place / f"{kind}-{number}"
        try:
            why = RACES[kind](run, known, random.Random(f"{kind} {number}"))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        rows.append({"kind": kind, "number": number, "why": why})
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{kind} {number}: {why or 'as it should be'}", flush=True)
        shutil.rmtree(run, ignore_errors=True)
    return rows


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line a kind."""
    lines = ["| what | times | as it should be | wrong |", "|---|---|---|---|"]
    for kind in [kind for kind in RACES if kind in {row["kind"] for row in rows}]:
        mine = [row for row in rows if row["kind"] == kind]
        wrong = sum(bool(row["why"]) for row in mine)
        lines.append(f"| {TITLES[kind]} | {len(mine)} | {len(mine) - wrong} | {wrong} |")
    return lines


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/recovery.md."""
    put(DOCS, *MARK, table_of(rows))


def main() -> None:
    """Run them all; exit code 1 if anything went wrong."""
    parser = options(__doc__, processes=1)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--only", choices=[*RACES])
    asked = parser.parse_args()
    if asked.table:
        return write_table(rows_in(ROWS_FILE))
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with own_folder() as place:
        plan = PLAN | {"max_train_samples": 7, "max_val_samples": 2, "effective_batch": 6,
                       "accumulation": 6}  # fmt: skip
        (place / "plan.json").write_text(json.dumps(plan))
        trains = forked.lisa_train(*arguments(place, "whole"))
        if forked.run(trains, place / "log"):
            sys.exit((place / "log").read_text())
        known = outcome(place / "whole")

        def dies() -> None:
            from trainer.run import checkpoint

            real, saves = checkpoint.save, [0]

            def save(*given: Any, **named: Any) -> None:
                real(*given, **named)
                saves[0] += 1
                if saves[0] == 2:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.save = save
            forked.lisa_train(*arguments(place, "begun"))()

        forked.run(dies, place / "log")
        kinds = [asked.only] if asked.only else [*RACES]
        if "launchers" in kinds:
            for count in GROUPS:
                whole = group(place / f"whole-{count}", count)
                subprocess.run(whole, cwd=ROOT, capture_output=True, check=True)
        many, kept = asked.processes, asked.rows or place / "rows.jsonl"
        cases = [(kind, number) for kind in kinds for number in range(asked.times)]
        rows, cases = still_to_run(cases, kept)
        rows += side_by_side(work, many, cases, place, known, kept)
    print("\n".join(table_of(rows)))
    sys.exit(any(row["why"] for row in rows))


if __name__ == "__main__":
    main()
