"""7B under the cap of an 8 GB card: killed, capped lower midway, robbed by another process.

    python benchmarks/recovery.py --out FOLDER     on a GPU, each run in processes of its own
    python benchmarks/recovery.py --table          docs/recovery.md's table and log

Random weights of the true shapes, synthetic questions. Every run has the same plan, data and seed,
so its losses are held against those of the run that nothing disturbs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lean
from tables import put, rows_of

Heed = Callable[[str, "subprocess.Popen[str]"], None]
ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "recovery.jsonl"
DOCS = ROOT / "docs" / "recovery.md"
MARK = "<!-- benchmarks/recovery.py -->", "<!-- /benchmarks/recovery.py -->"
LOG = "<!-- benchmarks/recovery.py log -->", "<!-- /benchmarks/recovery.py log -->"
CAP_GIB, LOWER_GIB = lean.CARDS[8], 6.0
FREE_GIB, ROBBED_GIB = 9.5, 3.0
SETTINGS = ("weights=random", "compile=false", "lora.dropout=0", "schedule.epochs=3",
            "schedule.warmup_steps=2", "workers=2")  # fmt: skip
QUESTIONS, MIDWAY = 100, 7  # in training: five steps an epoch; the step after which it happens
TIMEOUT = 420
# Holds memory as another program would: takes it at one line, gives it back at the next.
HOG = (
    "import sys,torch;torch.zeros(1,device='cuda');print('up',flush=True);input();"
    "x=torch.empty({},dtype=torch.uint8,device='cuda');print('taken',flush=True);input()"
)


class Hog:
    """Another process on the card."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.has_taken = False

    def start(self, size: int) -> None:
        """Be on the card, with next to nothing so far."""
        self.process = subprocess.Popen([sys.executable, "-c", HOG.format(size)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        self._answer()

    def take(self) -> None:
        """Take what it was started for."""
        assert self.process and self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._answer()
        self.has_taken = True

    def leave(self) -> None:
        """Give all back."""
        if self.process:
            self.process.communicate("\n")
            self.process = None

    def _answer(self) -> None:
        assert self.process and self.process.stdout
        self.process.stdout.readline()


def free_bytes() -> int:
    """Of the card, as the driver counts."""
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free)


def train(arguments: list[str], cap_file: Path | None, heed: Heed) -> list[str]:
    """Run lisa-train, passing each line to `heed`; returns all lines with their seconds."""
    environ = dict(os.environ)
    if cap_file:
        paths = [str(ROOT / "benchmarks" / "capped"), environ.get("PYTHONPATH", "")]
        environ |= {"CAP_FILE": str(cap_file), "PYTHONPATH": os.pathsep.join(paths)}
    started, lines = time.monotonic(), []
    process = subprocess.Popen([sys.executable, "-m", "trainer.cli", *arguments], cwd=ROOT,
                               env=environ, text=True, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        lines.append(f"{time.monotonic() - started:6.1f} s  {line.rstrip()}")
        print(lines[-1], flush=True)
        heed(line, process)
    code = process.wait(TIMEOUT)
    return [*lines, f"{time.monotonic() - started:6.1f} s  (exit code {code})"]


def midway(run: Path, act: Callable[[], object]) -> None:
    """Act once the run has done so many steps."""

    def wait() -> None:
        while steps_done(run) < MIDWAY:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def steps_done(run: Path) -> int:
    """As the run's own records have it."""
    try:
        return (run / "metrics.jsonl").read_text().count('"loss"')
    except OSError:
        return 0


def measure(out: Path, only: list[str]) -> None:
    """All runs, or those of `only`, one after the other."""
    work = Path(os.environ.get("TMPDIR", "/tmp")) / "recovery"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    cap, plan, data = work / "cap", work / "plan.json", work / "data"
    call = [sys.executable, "-m"]
    subprocess.run([*call, "trainer.cli", "synthesise", data, "--train", str(QUESTIONS),
                    "--val", "6", "--test", "1"], check=True, cwd=ROOT)  # fmt: skip
    sets = [text for one in SETTINGS for text in ("--set", one)]
    subprocess.run([*call, "advisor.cli", "--model", "7b", "--vram", "8GiB", *sets,
                    "--data-dir", data, "--save", plan], check=True, cwd=ROOT)  # fmt: skip
    common = ["--plan", str(plan), "--data-dir", str(data), "--cache-dir", str(work / "cache")]
    holder, robber = Hog(), Hog()

    def nothing(line: str, process: subprocess.Popen[str]) -> None:
        pass

    def lower(line: str, process: subprocess.Popen[str]) -> None:
        if line.startswith("before training"):
            midway(work / "capped", partial(cap.write_text, str(LOWER_GIB)))

    def kill(line: str, process: subprocess.Popen[str]) -> None:
        if line.startswith("before training"):
            midway(work / "killed", partial(process.send_signal, signal.SIGKILL))

    def rob(line: str, process: subprocess.Popen[str]) -> None:
        if line.startswith("clip features:") and "found" in line and not robber.has_taken:
            robber.take()
        if line.startswith("waiting for"):
            robber.leave()

    again = [["--resume", str(work / "killed")]]
    runs: list[tuple[str, list[list[str]], Heed]] = [
        ("undisturbed", [common], nothing),
        ("capped", [common], lower),
        ("killed", [[*common, "--save-steps", "2"], *again], kill),
        ("robbed", [[*common, "--wait-minutes", "3"]], rob),
    ]
    for name, calls, heed in [run for run in runs if not only or run[0] in only]:
        cap.write_text(str(CAP_GIB))
        if name == "robbed":  # by real memory, with no cap
            robber.start(round(ROBBED_GIB * 2**30))
            holder.start(free_bytes() - round((FREE_GIB + 0.6) * 2**30))
            holder.take()
            print(f"{free_bytes() / 2**30:.2f} GiB are free now", flush=True)
        lines: list[str] = []
        for arguments in calls:
            where = [] if "--resume" in arguments else ["--output-dir", str(work / name)]
            capped = None if name == "robbed" else cap
            heeding = nothing if "--resume" in arguments else heed
            lines += train([*arguments, *where], capped, heeding)
        (out / f"{name}.log").write_text("\n".join(lines).replace(f"{work}/", "") + "\n")
        with (out / "recovery.jsonl").open("a") as file:
            file.write(json.dumps(row_of(name, work / name)) + "\n")
    holder.leave()
    robber.leave()


def row_of(name: str, run: Path) -> dict[str, Any]:
    """What a run folder records."""
    records = rows_of(run / "metrics.jsonl")
    shortages = [json.loads((place / "shortage.json").read_text())
                 | {"answer": json.loads((place / "answer.json").read_text())}
                 for place in sorted(run.glob("out-of-memory/*"))]  # fmt: skip
    facts = json.loads((run / "last" / "facts.json").read_text())
    return {
        "run": name, "done": (run / "summary.json").exists(),
        "steps": [record["step"] for record in records if "loss" in record],
        "losses": [record["loss"] for record in records if "loss" in record],
        "rates": [record["learning_rate"] for record in records if "loss" in record],
        "plan": json.loads((run / "plan.json").read_text()), "shortages": shortages,
        "gpu": facts["hardware"], "versions": facts["versions"],
    }  # fmt: skip


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/recovery.md between its marks."""
    known = rows[0]["losses"]
    table = ["| run | ended | steps, in order | out of memory | went on with | losses differ by |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        in_order = (
            row["steps"] == list(range(1, len(known) + 1)) and row["rates"] == rows[0]["rates"]
        )
        apart = max(abs(a / b - 1) for a, b in zip(row["losses"], known, strict=False))
        short = [f"{s['phase']} after step {s['step']}" for s in row["shortages"]]
        levers = [s["answer"].get("levers", "–") for s in row["shortages"]]
        cells = [row["run"], "trained" if row["done"] else "no", f"{len(row['steps'])}, "
                 f"{'yes' if in_order else 'NO'}", "; ".join(short) or "–",
                 "; ".join(levers) or "–", f"{apart:.1e}"]  # fmt: skip
        table.append(f"| {' | '.join(cells)} |")
    put(DOCS, *MARK, table)
    log = (ROWS_FILE.parent / "recovery-capped.log").read_text().splitlines()
    put(DOCS, *LOG, ["```text", *log, "```"])
    print("\n".join(table))


def main() -> None:
    """Measure, or write the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="of the runs")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(rows_of(ROWS_FILE))
    else:
        measure(arguments.out, arguments.only)


if __name__ == "__main__":
    main()
