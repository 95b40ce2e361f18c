"""Kill a command just before every one of its file operations, do it again, and compare.

    python benchmarks/crashes.py [--scene NAME] [--sample N] [--every 3] [--processes 2]
    python benchmarks/crashes.py --table

Each scene is a command that writes: trainings that keep 1, 2 and 3 checkpoints, a resume, an
out-of-memory restart, building a feature cache, import, export, convert, evaluate, synthesise. It
runs once undisturbed, and its file operations are counted (benchmarks/file_operations.py). Then it
runs once for each of them, is killed there, and is done again as its user would: `--resume` where a
run has begun, else the same command. The end has to be the same bit for bit, with no file more or
less; of a training, the newest checkpoint that was whole must be what is gone on from. *torn*: what
was written and not forced to disk is lost in addition. *twice*: the second attempt is killed as
well, at a random operation. The latter two at every third operation, or as --every says. Each case
is a row in --rows as soon as it has ended; what has a row there is not run again, so a run that was
cut off goes on. From benchmarks/crashes.jsonl, --table writes docs/recovery.md's table.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import forked
from crash_scenes import ROOT, SCENES, TAKEN, Scene, begin, scene_of, write_plan
from file_operations import Copies, Fatal, Shim
from tables import put
from trials import options, own_folder, rows_in, side_by_side

DOCS, ROWS_FILE = ROOT / "docs" / "recovery.md", ROOT / "benchmarks" / "crashes.jsonl"
MARK = "<!-- benchmarks/crashes.py -->", "<!-- /benchmarks/crashes.py -->"
WAYS = ("killed", "torn", "twice")


class Attempt:
    """One scene in a folder of its own."""

    def __init__(self, scene: Scene, base: Path, name: str) -> None:
        self.scene = scene
        self.folder, self.log = base / "scenes" / name, base / "logs" / name
        self.folder.mkdir(parents=True)
        self.log.parent.mkdir(exist_ok=True)
        scene.prepare(self.folder, base / "common")

    def run(
        self, fatal: Fatal, torn: bool, operations: Path | None = None,
        copies: Copies | None = None,
    ) -> int:  # fmt: skip
        """As its user would start it now; killed before an operation, or copied, or not."""
        run = self.folder / (self.scene.run or "-")
        resumes = (run / "run.json").exists()
        command = ["--resume", str(run)] if resumes else self.scene.command(self.folder)

        def work() -> None:
            self.scene.plant(self.folder)
            Shim(self.folder, fatal, torn, operations, copies).install()
            forked.lisa_train(*command)()

        return forked.run(work, self.log)

    def finished(self, copies: Copies | None = None) -> int:
        """Start it until it ends by itself; the last exit code. Copies are made by the first."""
        for turn in range(3):
            code = self.run(None, False, copies=None if turn else copies)
            if code != 75:  # out of memory: the process would have been replaced
                return code
        return code

    def said(self) -> str:
        """All that was printed."""
        return self.log.read_text(errors="replace")

    def state(self) -> dict[str, str]:
        """Each file with a digest of what must be equal; names omit process numbers and times."""
        found: dict[str, str] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if re.fullmatch(r"cache/(\.contents-\w+\.json-\d+|[\w-]+/\.writing-\w+)", name):
                continue  # others may be writing there: it goes when it is an hour old
            if path.name.startswith("events.out.tfevents"):
                name, content = str(Path(name).with_name("events")), b""
            elif path.is_dir():
                content = b""
            else:
                content = steady(path).replace(str(self.folder).encode(), b"")
            found[name] = hashlib.sha256(content).hexdigest()[:12]
        return found


def steady(path: Path) -> bytes:
    """A file's content without what differs between runs: times, places, memory."""
    if path.name in (".lock", ".holder.json", "run.json", "manifest.json", "facts.json",
                     "shortage.json", "answer.json", "overlay.png", "extremes.png",
                     "conversion.json") or path.name.endswith(".md"):  # fmt: skip
        return b""
    content = path.read_bytes()
    if path.suffix == ".safetensors":  # which writes its notes in any order
        end = 8 + int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    if path.name in ("metrics.jsonl", "summary.json", "state.json", "scores.json"):
        return re.sub(
            rb'"(step_seconds|memory_bytes|seconds|records)": ([0-9.]+|null)', b"", content
        )
    return content


def whole_checkpoints(run: Path) -> list[tuple[int, int]]:
    """(save, step) of every folder of a run whose checksums allow a resume."""
    found = []
    for manifest in [*run.glob("*/manifest.json"), *run.glob(".*/manifest.json")]:
        try:
            sums = json.loads(manifest.read_text())
            files = {n: (manifest.parent / n).read_bytes() for n in sums}
            if "state.json" in sums and all(
                hashlib.sha256(files[name]).hexdigest() == sums[name] for name in sums
            ):
                facts = json.loads(files["facts.json"])
                found.append((facts["save"], facts["step"]))
        except (OSError, ValueError):
            continue
    return found


def one(
    scene: Scene, base: Path, name: str, way: str, fatal: int, second: int, known: dict[str, str]
) -> str:  # noqa: E501
    """Kill an attempt, repeat it, compare; '' if everything is right."""
    attempt = Attempt(scene, base, name)
    code = attempt.run(fatal, torn=way == "torn")
    if code != -9:
        return f"was not killed: exit code {code}: {attempt.said()[-600:]}"
    if way == "twice":
        code = attempt.run(second, torn=False)
        if code not in (-9, 0, 75) and TAKEN not in attempt.said():
            return f"second: exit code {code}: {attempt.said()[-900:]}"
    why = mended(attempt, way, known)
    if not why:
        shutil.rmtree(attempt.folder)
        attempt.log.unlink()
    return why


def mended(attempt: Attempt, way: str, known: dict[str, str], copies: Copies | None = None) -> str:
    """Do again what was killed, compare; '' if everything is right."""
    scene = attempt.scene
    whole = whole_checkpoints(attempt.folder / scene.run) if scene.run else []
    complete = (attempt.folder / "run" / "summary.json").exists() and way != "torn"
    before = len(attempt.said())
    code = attempt.finished(copies)
    said = attempt.said()[before:]
    if code and TAKEN not in said:
        return f"exit code {code}: {said[-900:]}"
    if "Traceback" in said:
        return said[said.index("Traceback") :][-900:]
    if whole and not complete and "run is complete" not in said:
        steps = re.findall(r"(?:going on|continuing) from \S+ after step (\d+)", said)
        if not steps or int(steps[0]) != max(whole)[1]:
            return f"went on from step {steps or 'none'}, {max(whole)} was whole"
    state = attempt.state()
    if scene.run:  # kept for the user where a checkpoint was damaged: never by a kill alone
        odd = [n for n in state if "/damaged" in n]
        if odd:
            return f"set aside as damaged: {odd[:3]}"
    differs = {n for n in state.keys() | known.keys() if state.get(n) != known.get(n)}
    return f"differs: {sorted(differs)[:6]}" if differs else ""


Cases = list[tuple[str, str, int, int]]


def work(
    cases: Cases, base: Path, counts: dict[str, int], known: dict[str, dict[str, str]], kept: Path
) -> list[dict[str, Any]]:
    """Run some cases in this process, one after the other; write each one's row at once."""
    rows = []
    for name, way, fatal, second in cases:
        scene = scene_of(name)
        label = re.sub(r"\W+", "-", f"{name} {way} {fatal} {second}")
        try:
            why = one(scene, base, label, way, fatal, second, known[name])
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        rows.append({"scene": name, "of": counts[name], "way": way, "fatal": fatal,
                     "second": second, "why": why})  # fmt: skip
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        if why:
            print(json.dumps(rows[-1]), flush=True)
    return rows


def still_to_run(
    cases: Cases, counts: dict[str, int], kept: Path
) -> tuple[list[dict[str, Any]], Cases]:
    """The rows that a file holds of these cases, and the cases that have none.

    A row of a scene that had another number of operations then is of another program.
    """
    found = {
        (row["scene"], row["way"], row["fatal"], row["second"]): row
        for row in rows_in(kept)
        if row["of"] == counts.get(row["scene"])
    }
    return [found[c] for c in cases if c in found], [c for c in cases if c not in found]


def share(base: Path, scenes: list[Scene]) -> None:
    """Make what the scenes share: a run that has ended, one killed in a save, and checkpoints."""
    shared = base / "common"
    shared.mkdir()
    sys.path.insert(0, str(ROOT))
    first = Attempt(Scene("", begin(2), write_plan, "run"), base, "first")
    # In this process: what it imports and makes once, the forked ones have.
    if forked.here(forked.lisa_train(*first.scene.command(first.folder))):
        sys.exit("the undisturbed training failed")
    shutil.copytree(first.folder / "run", shared / "whole")
    begun = Attempt(Scene("", begin(2), write_plan, "run"), base, "begun")
    if begun.run(("replace run/last", 3), False) != -9:
        sys.exit("the training was not killed in its third save")
    shutil.copytree(begun.folder / "run", shared / "begun")
    if any(scene.name == "convert" for scene in scenes):
        import torch
        from safetensors.torch import load_file

        from tests.trainer.convert.test_convert import reference, sources
        from trainer.model.build import save_model

        (shared / "upstream").mkdir()
        (shared / "layout").mkdir()
        layout = save_model(reference(), shared / "layout", torch.bfloat16)
        sources(shared / "upstream", load_file(layout))


def prepare(base: Path, scenes: list[Scene]) -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """The operations of each scene, and how each ends undisturbed."""
    share(base, scenes)
    counts, known = {}, {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        names = [scene.name for scene in scenes]
        ends = pool.map(undisturbed, names, [base] * len(names))
        for name, (counts[name], known[name]) in zip(names, ends, strict=True):
            print(f"{name}: {counts[name]} operations", flush=True)
    return counts, known


def undisturbed(name: str, base: Path) -> tuple[int, dict[str, str]]:
    """How many operations a scene has, and how it ends."""
    scene, label = scene_of(name), re.sub(r"\W+", "-", name)
    attempt, listed = Attempt(scene, base, label), base / f"operations-{label}"
    code = attempt.run(None, False, listed)
    if code == 75:
        code = attempt.finished()
    if code:
        raise RuntimeError(f"{name}: exit code {code}\n{attempt.said()}")
    return len(listed.read_text().splitlines()), attempt.state()


def sampled(cases: Cases, count: int, rng: random.Random) -> Cases:
    """So many cases, of each command and way in turn: most operations are those of trainings."""
    mixed, turns = rng.sample(cases, len(cases)), Counter[tuple[str, str]]()
    turn = {}
    for case in mixed:
        turn[case] = turns[case[:2]]
        turns[case[:2]] += 1
    return sorted(mixed, key=turn.__getitem__)[:count]


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line a scene."""
    counts = {s.name: row["of"] for s in SCENES for row in rows if row["scene"] == s.name}
    lines = ["| command | file operations | killed before each | torn as well | killed twice | same end, nothing left over | wrong |",  # noqa: E501
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in [*counts, "all"]:
        mine = [row for row in rows if name in ("all", row["scene"])]
        ways = [sum(row["way"] == way for row in mine) for way in WAYS]
        wrong = sum(bool(row["why"]) for row in mine)
        cells = [sum(counts.values()) if name == "all" else counts[name], *ways,
                 len(mine) - wrong, wrong]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return lines


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/recovery.md."""
    put(DOCS, *MARK, table_of(rows))


def main() -> None:
    """Run all cases; exit code 1 if any case ended wrongly."""
    parser = options(__doc__, processes=2)
    parser.add_argument("--scene", action="append", choices=[scene.name for scene in SCENES])
    parser.add_argument(
        "--sample",
        type=int,
        help="only so many, drawn by the seed, of each command and way in turn",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=3, help="operation is torn and twice  [3]")
    arguments = parser.parse_args()
    if arguments.table:
        return write_table(rows_in(ROWS_FILE))
    import torch

    from advisor import fallback  # noqa: F401  what the forked processes would each import

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    scenes = [s for s in SCENES if not arguments.scene or s.name in arguments.scene]
    every = arguments.every
    started = time.monotonic()
    with own_folder() as base:
        counts, known = prepare(base, scenes)
        rng = random.Random(arguments.seed)
        cases = [(scene, "killed", n, 0) for scene in counts
                 for n in range(1, counts[scene] + 1)]  # fmt: skip
        cases += [(scene, "torn", n, 0) for scene in counts
                  for n in range(rng.randint(1, every), counts[scene] + 1, every)]  # fmt: skip
        cases += [(scene, "twice", rng.randint(1, counts[scene]), rng.randint(1, counts[scene]))
                  for scene in counts for _ in range(counts[scene] // every)]  # fmt: skip
        if arguments.sample:
            cases = sampled(cases, arguments.sample, rng)
        many, kept = arguments.processes, arguments.rows or base / "rows.jsonl"
        rows, cases = still_to_run(cases, counts, kept)
        rows += side_by_side(work, many, cases, base, counts, known, kept)
    print("\n".join(table_of(rows)))
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(row["why"] for row in rows))


if __name__ == "__main__":
    main()
