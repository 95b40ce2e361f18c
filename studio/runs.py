"""What a run folder says about its run: state, curves, results, and what happened, in words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from advisor.report.summary import plan_line
from profiles.files import read_object, writer
from profiles.records import Frozen
from profiles.sizes import gib
from profiles.text import counted
from studio import results
from studio.forecasts import advised, data_of, plan_of
from studio.places import Places
from studio.processes import Processes
from studio.records import number, records
from trainer.answer.scored import are_numbers, data_named
from trainer.run.folder import RECORD, SUMMARY, is_complete
from trainer.run.shortages import ANSWER, shortages

METRICS = "metrics.jsonl"
FIGURES = ("giou", "ciou", "images")
CURVES = ("loss", "learning_rate", "memory_bytes", "step_seconds")


class Since(Frozen):
    """A run, and how many bytes of its records the page has already."""

    run: str = Field(max_length=4000)
    at: int = Field(0, ge=0)


class Nothing(Frozen):
    """No question."""


def listed(_: Nothing, places: Places, processes: Processes) -> dict[str, Any]:
    """All runs, the newest first, and what was started and has no run folder yet."""
    new = (one for one in processes.started() if is_of_run(one) and places.sees(one))
    rows = [row(folder, places, processes) for folder in dict.fromkeys([*places.runs(), *new])]
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
        "hash": plan.content_hash if plan else "",
        "epochs": plan.schedule.epochs if plan else None,
        "state": state,
        "words": words,
        "when": record.stat().st_mtime if record.exists() else time.time(),
        "before": number(summary.get("before") or saved.get("before"), "giou"),
        "best": number(best, "giou"),
        "seconds": number(summary, "seconds"),
        "scores": scores_of(folder, places),
        "works": list(results.works(folder, processes)),
    }


def place_of(folder: Path, places: Places) -> str:
    """A run's place on the page; its folder need not exist yet."""
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
    found, plan = row(folder, places, processes), plan_of(folder)
    lines = processes.log(folder) if folder.is_relative_to(processes.home) else []
    return found | {
        "steps": steps, "evaluations": evaluations, "at": at, "anew": anew,
        "forecast": advised(folder, plan), "on_card": plan is not None and plan.device != "cpu",
        "happened": list(happened(folder)),
        "pictures": results.pictures(folder, places), "data": data_of(folder, places),
        "log": lines[-40:], "left": next((one for one in reversed(lines) if " left" in one), ""),
    }  # fmt: skip


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


def scores_of(folder: Path, places: Places) -> list[dict[str, Any]]:
    """The evaluations of a run: figures with their intervals, and the pictures' name."""
    found = []
    for place in results.files(folder, "evaluation-*/scores.json", places):
        scores = read_object(place)
        whole = scores.get("all")
        if isinstance(whole, dict):
            figures: dict[str, Any] = {key: number(whole, key) for key in FIGURES}
            if are_numbers(ends := whole.get("giou_95")):
                figures["giou_95"] = ends
            found.append({"split": scores.get("split"), "answers": scores.get("answers"),
                          "data": data_named(scores), "folder": place.parent.name}
                         | figures)  # fmt: skip
    return found
