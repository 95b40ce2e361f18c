"""docs/studio.md's way on the page, in a headless Chromium: its pictures, and how long it takes.

    python benchmarks/studio.py             # some five minutes on two idle cores
    python benchmarks/studio.py --table     # only the table, from benchmarks/studio.jsonl

It clicks what the page's reader clicks: makes a synthetic set, looks at it, plans, trains, scores
and asks. The times are of this machine's processor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advisor.machine.probe import probe
from profiles.text import time_text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests are not installed
from tests.studio.session import Session, session  # noqa: E402

DOCS, ROWS = ROOT / "docs", Path(__file__).with_suffix(".jsonl")
BEGIN, END = "<!-- benchmarks/studio.py -->", "<!-- /benchmarks/studio.py -->"
EPOCHS, NAME = 4, "first"


class Way:
    """The steps, each timed by its title."""

    def __init__(self, page: Session, home: Path) -> None:
        self.page, self.home = page, home
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time a step."""
        began = time.monotonic()
        yield
        self.seconds[title] = round(time.monotonic() - began, 1)
        print(f"{title}: {self.seconds[title]} s", flush=True)

    def picture(self, name: str, height: int = 800) -> None:
        """Keep what the page shows for the docs."""
        self.page.photograph(DOCS / f"studio-{name}.jpg", height=height)

    def data(self) -> None:
        """A set to train on, looked at; and an outline in the editor."""
        page = self.page
        page.open("data")
        with self.step("make a data set"):
            page.click("make-start")
            page.until("document.getElementById('make-said').textContent.includes('questions')")
        with self.step("check it and look at it"):
            page.click("data-check")
            page.until("document.getElementById('data-verdict')")
            page.click("data-preview")
            page.until("document.getElementById('data-sheet')?.naturalWidth > 100")
        self.picture("data")

    def editor(self) -> None:
        """The question editor, for its picture alone."""
        page = self.page
        pictures = sorted((self.home / "synthetic" / "ReasonSeg" / "train").glob("*.jpg"))
        page.choose("edit-picture", f"work/synthetic/ReasonSeg/train/{pictures[0].name}")
        page.until("document.getElementById('edit-canvas').offsetWidth > 100")
        page.tab.run("document.getElementById('edit-picture').scrollIntoView()")
        self.picture("editor")

    def plan(self) -> None:
        """A card that is not here, for the picture; then this machine."""
        page = self.page
        page.open("plan")
        page.fill("plan-model", "7b")
        page.fill("plan-card", "rtx-3060-12gb")
        page.click("plan-ask")
        page.until("document.querySelector('#plan-answer svg')")
        self.picture("plan")
        with self.step("plan"):
            page.fill("plan-card", "")
            page.fill("plan-model", "tiny")
            page.choose("plan-data", "work/synthetic")
            page.fill("plan-settings", f"schedule.epochs={EPOCHS}")
            page.click("plan-ask")
            page.until("document.getElementById('plan-answer').textContent.includes('CPU')")
            page.click("plan-train")

    def train(self) -> None:
        """To the end, with a picture on the way."""
        page = self.page
        with self.step("train"):
            page.fill("train-name", NAME)
            page.click("train-start")
            shown = "document.getElementById('train-progress')?.dataset.step"
            self.wait(f"{shown} >= 70")
            self.picture("train", height=900)
            self.wait("document.getElementById('train-state')?.textContent === 'complete'")

    def wait(self, condition: str) -> None:
        """Wait for what may take minutes."""
        for _ in range(20):
            try:
                return self.page.until(condition)
            except AssertionError:
                continue
        raise TimeoutError(condition)

    def score(self) -> None:
        """Score the run, and look at its worst and best pictures."""
        page = self.page
        page.click("tab-runs")
        shown = "document.querySelector('[data-run]')"
        page.until(f"{shown} && ({shown}.click(), true)")
        with self.step("score"):
            page.click("runs-evaluate")
            page.until("document.getElementById('runs-pictures').textContent.includes('worst')")
        page.tab.run("scrollTo(0, 0)")
        self.picture("runs", height=1100)

    def ask(self) -> None:
        """Ask the trained model about a picture that it has not seen."""
        page = self.page
        pictures = sorted((self.home / "synthetic" / "ReasonSeg" / "val").glob("*.jpg"))
        notes = [json.loads(one.with_suffix(".json").read_text("utf-8")) for one in pictures]
        place = next(number for number, one in enumerate(notes) if one["is_sentence"])
        with self.step("load the model and ask"):
            page.click("tab-ask")
            page.click("ask-load")
            page.until("document.getElementById('ask-loaded').textContent.includes('tiny on')")
            page.choose("ask-place", f"work/synthetic/ReasonSeg/val/{pictures[place].name}")
            page.until("document.getElementById('ask-image').naturalWidth > 100")
            page.fill("ask-questions", notes[place]["text"][0])
            page.click("ask-put")
            page.until("document.getElementById('ask-rle')")
        time.sleep(1)
        self.picture("ask", height=1000)


def measured() -> dict[str, Any]:
    """A row: seconds by step, gIoU before and at best, and the machine."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "work"
        home.mkdir()
        with session(home, Path(folder) / "profile") as page:
            way = Way(page, home)
            for step in (way.data, way.editor, way.plan, way.train, way.score, way.ask):
                step()
            assert page.problems() == [], page.problems()
        summary = json.loads((home / "runs" / NAME / "summary.json").read_text(encoding="utf-8"))
    machine = probe()
    return {
        "seconds": way.seconds, "epochs": EPOCHS, "before": round(summary["before"]["giou"], 3),
        "best": round(summary["best"]["giou"], 3), "cores": machine.cpu_count,
        "load": round(os.getloadavg()[1], 1), "cpu": machine.cpu_model,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def _others(row: dict[str, Any]) -> str:
    """Who else used the cores, by the load at the end of the way."""
    if row["load"] <= row["cores"] + 1:
        return "nothing else ran there"
    return f"others used them too, so that {row['load']:.0f} processes wanted a core at once"


def table(row: dict[str, Any]) -> str:
    """The row as docs/studio.md has it."""
    lines = ["| step | time |", "|---|---|"]
    lines += [f"| {title} | {time_text(seconds)} |" for title, seconds in row["seconds"].items()]
    whole = time_text(sum(row["seconds"].values()))
    lines += [f"| all, without reading | {whole} |", ""]
    lines.append(
        f"On {row['cores']} cores of an {row['cpu']}, {row['date']}; {_others(row)}. After "
        f"{row['epochs']} epochs gIoU on the validation questions was {row['best']:.2f}; before, "
        f"it was {row['before']:.2f}."
    )
    return "\n".join(lines)


def drawn(page: str, row: dict[str, Any]) -> str:
    """The page with the table between its marks. Raises ValueError if it lacks them."""
    head, begun, rest = page.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return f"{head}{BEGIN}\n{table(row)}\n{END}{tail}"


def main() -> None:
    """Measure, unless only the table is wanted, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only write the table again")
    if not parser.parse_args().table:
        ROWS.write_text(json.dumps(measured()) + "\n", encoding="utf-8")
    row = json.loads(ROWS.read_text(encoding="utf-8").splitlines()[-1])
    page = DOCS / "studio.md"
    page.write_text(drawn(page.read_text(encoding="utf-8"), row), encoding="utf-8")


if __name__ == "__main__":
    main()
