"""Five crash points of every command, each as a copy of what a kill would leave there.

    python benchmarks/crash_copies.py [--seed 0] [--processes 2]

benchmarks/crashes.py kills a command once for each case. Here it runs once undisturbed, and what it
has written is copied just before five of its file operations, of which two copies are torn. Each
copy then takes the folder's place and is done again as its user would. While the first one is,
the folder is copied again: killed twice. Half of the processor time of as many kills.
`make test` runs it. A point past the last operation is a kill after it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from crash_scenes import SCENES, scene_of
from crashes import ROWS_FILE, Attempt, mended, share
from trials import options, own_folder, rows_in, side_by_side

FIRST, TWICE = "killed", "twice"
POINTS = ((FIRST, "killed"), ("killed later", "killed"), ("torn", "torn"), ("torn later", "torn"))
Point = tuple[str, tuple[int, ...]]  # a scene, and its five operations


class Copied(Attempt):
    """A command that runs undisturbed, and copies that take its place."""

    def copies(self, points: Sequence[tuple[int, str, bool]]) -> dict[int, list[tuple[Path, bool]]]:
        """Where the shim copies to, by the operation."""
        found: dict[int, list[tuple[Path, bool]]] = {}
        for operation, name, torn in points:
            found.setdefault(operation, []).append((self.copy(name), torn))
        return found

    def copy(self, name: str) -> Path:
        """The folder of a copy."""
        return self.folder.parents[1] / "copies" / f"{self.folder.name} {name}"

    def take(self, name: str) -> None:
        """Put a copy in the folder's place; one that was never made is the folder as it is."""
        if self.copy(name).exists():
            shutil.rmtree(self.folder)
            self.copy(name).rename(self.folder)


def tried(name: str, base: Path, operations: tuple[int, ...]) -> list[str]:
    """What went wrong with each of a scene's five copies; '' for those that ended right."""
    attempt = Copied(scene_of(name), base, re.sub(r"\W+", "-", f"{name} copied"))
    *firsts, last = operations
    points = zip(firsts, POINTS, strict=True)
    copies = attempt.copies([(one, called, way == "torn") for one, (called, way) in points])
    code = attempt.run(None, False, copies=copies)
    for called, _ in POINTS:
        if not attempt.copy(called).exists():
            shutil.copytree(attempt.folder, attempt.copy(called))
    code = attempt.finished() if code == 75 else code
    if code:
        return [f"undisturbed: exit code {code}: {attempt.said()[-600:]}"]
    known, whys = attempt.state(), list[str]()
    for called, way in POINTS:
        attempt.take(called)
        again = attempt.copies([(last, TWICE, False)]) if called == FIRST else None
        whys.append(mended(attempt, way, known, again))
        if called == FIRST:
            attempt.take(TWICE)
            whys.append(mended(attempt, TWICE, known))
    return whys


def work(points: list[Point], base: Path) -> list[dict[str, object]]:
    """The scenes of one process, one after the other."""
    return [{"scene": name, "operations": operations, "why": why}
            for name, operations in points for why in tried(name, base, operations)]  # fmt: skip


def main() -> None:
    """Print what went wrong, and how many cases there were; exit code 1 if any went wrong."""
    parser = options(__doc__, processes=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    counts = {row["scene"]: row["of"] for row in rows_in(ROWS_FILE)}
    rng = random.Random(arguments.seed)
    points = [(one.name, tuple(rng.randint(1, counts[one.name]) for _ in range(5)))
              for one in SCENES]  # fmt: skip
    with own_folder() as base:
        share(base, SCENES)
        rows = side_by_side(work, arguments.processes, points, base)
    wrong = [row for row in rows if row["why"]]
    print(*wrong, f"{len(rows)} cases, {len(wrong)} wrong", sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
