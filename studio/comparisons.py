"""Two runs side by side: the difference of their gIoU on the same questions, with its interval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from profiles.files import read_object, read_regular
from profiles.records import Frozen
from profiles.text import counted
from studio.places import Places
from studio.records import are_numbers, data_named
from studio.results import files
from trainer.run.intervals import bootstrapped


class Compared(Frozen):
    """Runs to compare, by their places; the first one with each of the others."""

    runs: tuple[str, ...] = Field(min_length=2, max_length=6)


def compare(asked: Compared, places: Places) -> dict[str, Any]:
    """The differences between runs that were scored on the same questions, in words."""
    first, *others = [places.folder(run) for run in dict.fromkeys(asked.runs)]
    return {
        "differences": [line for other in others for line in _differences(first, other, places)]
    }


def _differences(first: Path, other: Path, places: Places) -> Iterator[str]:
    scored = {_kind(path): path for path in files(other, "evaluation-*/scores.json", places)}
    for path in files(first, "evaluation-*/scores.json", places):
        split, answers, data = kind = _kind(path)
        if kind not in scored:
            continue
        ours, theirs = _ious(path), _ious(scored[kind])
        if not ours or ours.keys() != theirs.keys():
            yield f"{split}: {first.name} and {other.name} were scored on different questions"
            continue
        apart = np.array([ours[name] - theirs[name] for name in ours])
        where = f"{split} of {data}" if data else split
        where += ", own answers" if answers == "generated" else ""
        yield f"{where}: {first.name} − {other.name}: gIoU {_told(apart)}"


def _kind(path: Path) -> tuple[str, str, str]:
    """What was scored: equal for two runs whose scores can be compared."""
    scores = read_object(path)
    return str(scores.get("split")), str(scores.get("answers")), data_named(scores)


def _ious(scores: Path) -> dict[str, float]:
    """The IoU of each question, by its item's name; empty where that cannot be read."""
    try:
        lines = read_regular(scores.with_name("images.jsonl")).splitlines()
        found = {str(row["name"]): float(row["iou"]) for row in map(json.loads, lines)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if are_numbers(list(found.values())) else {}


def _told(apart: np.ndarray) -> str:
    """A mean difference, and whether it is more than the choice of the questions makes.

    The interval is that of `MaskScores.intervals`, over the questions' differences: what is easy or
    hard for both runs drops out.
    """
    of = counted(len(apart), "question")
    if len(apart) < 2:
        return f"{apart.mean():+.3f} on {of}"
    ((low, high),) = bootstrapped(len(apart), lambda drawn: (apart[drawn].mean(),))
    clear = "" if low > 0 or high < 0 else "; other questions could turn it round"
    return f"{apart.mean():+.3f} [{low:+.3f}, {high:+.3f}] on {of}{clear}"
