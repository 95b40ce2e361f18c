"""Processor seconds of lisa-tiny's answers on a CPU, by the code of several working trees in turns.

    git worktree add ../before fc730ae^
    python benchmarks/cpu_answers.py ../before .

Each tree answers three times: a question about each photograph, 16 questions about one, and the
whole command. The least of each counts, since others may use the cores.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[1] / "tests" / "photos" / "ReasonSeg" / "train"
ROUNDS = 3
WHOLE = "lisa-segment, a question about a photograph"
ASKING = """
import sys, time
from pathlib import Path
from profiles.plan import Plan
from trainer.answer.question import Question
from trainer.answer.segmenter import Segmenter
from trainer.answer.trained_model import Trained
plan = Plan.parse({"model": "tiny", "device": "cpu", "dtype": "fp32", "quantization": "none"})
images = [Path(one) for one in sys.argv[2:]]
segmenter = Segmenter(Trained(plan, None), images, Path(sys.argv[1]))
together = getattr(segmenter, "ask_all", lambda asked: map(segmenter.ask, asked))
kinds = "red large wet old soft hot near round".split()
sixteen = [f"What is {kind} and {how} here?" for kind in kinds for how in ("useful", "alive")]
for what, asked in (("16 questions about a photograph", [(images[0], one) for one in sixteen]),
                    (f"{len(images)} photographs, a question about each, twice",
                     [(image, "What would you drink from?") for image in images * 2])):
    segmenter.ask(Question(images[0], "What?"))
    began = time.process_time()
    count = len(list(together([Question(*one) for one in asked])))
    print(what, time.process_time() - began, sep="\\t")
"""


def run(tree: Path, home: Path, *arguments: str) -> tuple[str, float]:
    """What a tree's code prints when started with these arguments, and its processor seconds."""
    surroundings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                    "XDG_CACHE_HOME": str(home)}  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-P", *arguments], env=os.environ | surroundings, cwd=home, text=True,
        capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: an answer without a mask
        raise SystemExit(done.stderr)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def taken(tree: Path, home: Path) -> dict[str, float]:
    """Processor seconds of each kind of answer by one tree's code."""
    images = sorted(map(str, PHOTOS.glob("*.jpg")))
    if not (home / "run").exists():
        data = ["--data-dir", str(PHOTOS.parents[1]), "--output-dir", "run", "--epochs", "1"]
        few = ["--max-train-samples", "2", "--max-val-samples", "1"]
        run(tree, home, "-m", "trainer.cli", "--auto", "--model", "tiny", *data, *few)
    told, _ = run(tree, home, "-c", ASKING, str(home / "cache"), *images)
    found = {what: float(seconds) for what, seconds in
             (line.split("\t") for line in told.splitlines())}  # fmt: skip
    command = "import sys; from trainer.cli.segment import main; main()"
    _, found[WHOLE] = run(tree, home, "-c", command, images[0], "What is it?", "--run", "run")
    return found


def main() -> None:
    """Print the least processor seconds of every tree."""
    trees = [Path(text).resolve() for text in sys.argv[1:]]
    least: dict[tuple[str, Path], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for tree in trees * ROUNDS:
            home = Path(folder) / str(trees.index(tree))
            home.mkdir(exist_ok=True)
            for what, seconds in taken(tree, home).items():
                least[what, tree] = min(seconds, least.get((what, tree), seconds))
    for what in dict.fromkeys(what for what, _ in least):
        print(what, *(f"{least[what, tree]:.2f} s" for tree in trees), sep="\t")


if __name__ == "__main__":
    main()
