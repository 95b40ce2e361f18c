"""What a run folder says about its run: state, curves, results, and what happened, in words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from advisor.report.summary import plan_line
from profiles.files import read_object, writer
from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.sizes import gib
from profiles.text import counted
from studio import results
from studio.places import Places
from studio.processes import Processes
from trainer.run.folder import RECORD, SUMMARY, is_complete
from trainer.run.shortages import ANSWER, shortages

METRICS = "metrics.jsonl"
MOST_BYTES = 8 << 20  # of records for one answer; the page asks for the rest
CURVES = ("loss", "learning_rate", "memory_bytes", "step_seconds")


class Since(Frozen):
    """A run, and how many bytes of its records the page has already."""

    run: str = Field(max_length=4000)
    at: int = Field(0, ge=0)


class Nothing(Frozen):
    """No question."""


def listed(_: Nothing, places: Places, processes: Processes) -> dict[str, Any]:
    """All runs, the newest first, and what was started and has no run folder yet."""
    folders = list(places.runs())
    known = set(folders)
    folders += [one for one in processes.started() if one not in known and is_of_run(one)]
    rows = [row(folder, places, processes) for folder in folders]
    return {"runs": sorted(rows, key=lambda one: -one["when"])}


def is_of_run(folder: Path) -> bool:
    """Whether a process for this folder is a training."""
    return folder.parent.name == "runs"


def row(folder: Path, places: Places, processes: Processes) -> dict[str, Any]:
    """A run in a list of runs."""
    plan, summary = plan_of(folder), read_object(folder / SUMMARY)
    state, words = state_of(folder, processes)
    best = read_object(folder / "best" / "facts.json").get("metrics")
    saved = read_object(folder / "last" / "facts.json")
    record = folder / RECORD
    return {
        "run": place_of(folder, places),
        "name": folder.name,
        "model": plan.model if plan else "",
        "plan": plan_line(plan) if plan else "",
        "epochs": plan.schedule.epochs if plan else None,
        "state": state,
        "words": words,
        "when": record.stat().st_mtime if record.exists() else time.time(),
        "before": _number(summary.get("before") or saved.get("before"), "giou"),
        "best": _number(best, "giou"),
        "seconds": _number(summary, "seconds"),
        "scores": scores_of(folder),
        "works": list(results.works(folder, processes)),
    }


def place_of(folder: Path, places: Places) -> str:
    """What a run is called on the page; its folder need not exist yet."""
    found = places.place(folder)
    assert found is not None
    return found


def look(since: Since, places: Places, processes: Processes) -> dict[str, Any]:
    """A run's state, and the records that the page has not seen yet."""
    folder = processes.folder_of(since.run)
    rows, at, anew = records(folder / METRICS, since.at)
    steps = [{name: one[name] for name in ("step", "epoch", *CURVES) if name in one}
             for one in rows if "evaluation" not in one]  # fmt: skip
    evaluations = [one for one in rows if "evaluation" in one]
    found = row(folder, places, processes)
    lines = processes.log(folder) if folder.is_relative_to(processes.home) else []
    return found | {
        "steps": steps, "evaluations": evaluations, "at": at, "anew": anew,
        "forecast": forecast_of(folder), "happened": list(happened(folder)),
        "pictures": results.pictures(folder, places), "data": results.data_of(folder, places),
        "log": lines[-40:], "left": next((one for one in reversed(lines) if " left" in one), ""),
    }  # fmt: skip


def records(path: Path, at: int) -> tuple[list[dict[str, Any]], int, bool]:
    """The whole lines after the first `at` bytes, where they end, and whether they begin anew.

    A resumed run cuts its records back to those of its checkpoint, so they may have become fewer.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            anew = at > size
            start = file.seek(0 if anew else at)
            whole = file.read(MOST_BYTES)
    except OSError:
        return [], 0, at > 0
    whole = whole[: whole.rfind(b"\n") + 1]
    return list(_rows(whole)), start + len(whole), anew


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield {name: value for name, value in found.items()
                   if not isinstance(value, float) or math.isfinite(value)}  # fmt: skip


def state_of(folder: Path, processes: Processes) -> tuple[str, str]:
    """The state of a run in one word and in a sentence."""
    ours = folder.is_relative_to(processes.home)
    busy = writer(folder)
    if busy is not None or (ours and processes.running(folder)):
        trains = (folder / METRICS).exists()
        return "training" if trains else "starting", busy or "its process has just been started"
    if is_complete(folder):
        return "complete", "trained to the end"
    ended = _last_words(processes.log(folder)) if ours else ""
    if not (folder / RECORD).exists():
        return "failed", ended or "ended before the run began"
    saved = (folder / "last").is_dir()
    words = "its last checkpoint is whole: resume continues it" if saved else "nothing is saved yet"
    if ended.startswith("error:"):
        return "failed", f"{ended} ({words})"
    return (
        "stopped",
        ended or f"ended without an error, as after a kill or a reboot; {words}",
    )


def _last_words(log: list[str]) -> str:
    """What a process said at its end: its error with the hint, or its last line."""
    errors = [number for number, line in enumerate(log) if line.startswith("error:")]
    shown = log[errors[-1] :][:6] if errors else log[-1:]
    return " ".join(line.strip() for line in shown)


def happened(folder: Path) -> Iterator[str]:
    """What went wrong in a run and how it went on, in words, oldest first."""
    for place, short in shortages(folder).items():
        had = f" with {gib(short.reserved_bytes)} in its pool" if short.reserved_bytes else ""
        of = f" of {gib(short.limit_bytes)}" if had and short.limit_bytes else ""
        text = f"Out of memory while {short.phase}, after step {short.step}{had}{of}."
        answer = read_object(place / ANSWER)
        if levers := answer.get("levers"):
            text += f" Went on with {levers}: {answer.get('because', '')}."
        elif because := answer.get("because"):
            text += f" No smaller plan: {because}."
        else:
            text += " Resume continues with a smaller plan."
        yield text
    skipped = folder / "skipped.txt"
    if skipped.is_file():
        lines = skipped.read_text(encoding="utf-8", errors="replace").count("\n")
        yield f"{counted(lines, 'broken entry', 'broken entries')} of the data left out."


def forecast_of(folder: Path) -> dict[str, Any] | None:
    """What the advice of a run said that its pool takes at most, and what it may take."""
    advice = read_object(folder / "advice.json")
    needs, budget = advice.get("needs"), advice.get("budget")
    if not isinstance(needs, dict) or not isinstance(budget, dict):
        return None
    return {"needs": needs.get("bytes"), "usable": (budget.get("usable") or {}).get("bytes")}


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """The evaluations in a run folder: figures with their intervals, and the pictures' name."""
    found = []
    for place in sorted(folder.glob("evaluation-*/scores.json")):
        scores = read_object(place)
        whole = scores.get("all")
        if isinstance(whole, dict):
            figures = {key: whole.get(key) for key in ("giou", "ciou", "images", "giou_95")}
            found.append({"split": scores.get("split"), "answers": scores.get("answers"),
                          "folder": place.parent.name} | figures)  # fmt: skip
    return found


def plan_of(folder: Path) -> Plan | None:
    """The plan in a folder, if it has one that can be read."""
    try:
        return Plan.read(folder / "plan.json")
    except (PlanError, OSError, ValueError):
        return None


def _number(document: Any, name: str) -> float | None:
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
