"""What lisa-train left in a run folder: the plan, its advice, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from advisor.advice import Advice
from profiles.files import read_regular, reason
from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.sizes import MIB
from profiles.wrong_values import what_is_wrong

LARGEST = 64 * MIB  # of a file: metrics.jsonl of 300 000 steps
WARM_UP = 3  # first steps that compile and fill caches
CHECKPOINTS = ("last", "last-1", "best")


@dataclass(frozen=True)
class Measured:
    """A run's own figures; None is what it has not recorded."""

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    step_seconds: float | None = None  # the median
    steps: int | None = None
    seconds: float | None = None
    giou: dict[str, float] = field(default_factory=dict)  # before, best, after


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    plan: Plan
    advice: Advice | None
    measured: Measured
    versions: dict[str, str]


def read_run(folder: Path) -> Run:
    """The run in `folder`. Raises ValueError, which says what is wrong with which file."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not (folder / "plan.json").exists():
        raise ValueError(f"{folder}: holds no plan.json; needed: a run folder of lisa-train")
    try:
        plan = Plan.read(folder / "plan.json")
    except PlanError as error:
        raise ValueError(f"{folder / 'plan.json'}: is no plan\n{error}") from None
    versions = _document(folder / "versions.json")
    return Run(
        folder=folder,
        plan=plan,
        advice=_advice(folder / "advice.json"),
        measured=_measured(folder),
        versions={name: text for name, text in versions.items() if isinstance(text, str)},
    )


def _advice(path: Path) -> Advice | None:
    if not path.exists():
        return None
    try:
        return Advice.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {what_is_wrong(first)}"
        raise ValueError(f"{path}: is no advice of this version: {why}") from None


def _measured(folder: Path) -> Measured:
    """The figures of summary.json, of the newest checkpoint's facts, and of the steps."""
    summary = _document(folder / "summary.json")
    facts = next((found for name in CHECKPOINTS
                  if (found := _document(folder / name / "facts.json"))), {})  # fmt: skip
    rows = list(_rows(folder / "metrics.jsonl"))
    seconds = [time for row in rows if (time := _number(row, "step_seconds")) is not None]
    steady = seconds[WARM_UP:] or seconds
    giou = {name: value for name in ("before", "best", "after")
            if (value := _number(summary.get(name), "giou")) is not None}  # fmt: skip
    reserved, allocated = (_number(facts, f"peak_{kind}_bytes") for kind in
                           ("reserved", "allocated"))  # fmt: skip
    steps = _number(summary, "steps")
    return Measured(
        peak_allocated_bytes=None if allocated is None else round(allocated),
        peak_reserved_bytes=None if reserved is None else round(reserved),
        step_seconds=median(steady) if steady else None,
        steps=len(seconds) or None if steps is None else round(steps),
        seconds=_number(summary, "seconds"),
        giou=giou,
    )


def _number(document: Any, name: str) -> float | None:
    """A finite number that is not negative; None for anything else."""
    value = document.get(name) if isinstance(document, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < 1e18 else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The readable lines; if the run was killed, the last line may be cut off."""
    if not path.exists():
        return
    for line in _read(path).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises ValueError for a damaged one."""
    if not path.exists():
        return {}
    try:
        found = json.loads(_read(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is no JSON object")
    return found


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, LARGEST)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {reason(error)}") from None
