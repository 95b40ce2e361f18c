"""Two runs side by side: the difference of their gIoU on the same questions, with its interval.

Without torch: the page and `lisa-train compare` read what `lisa-train evaluate` has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from profiles.files import read_object, read_regular
from profiles.text import counted, one_line
from trainer.answer.scored import are_numbers, data_named
from trainer.run.intervals import bootstrapped

SCORED = "evaluation-*/scores.json"  # in a run's folder


class Scored(NamedTuple):
    """A run's name and its files of scores."""

    name: str
    files: Iterable[Path]


def differences(first: Scored, other: Scored) -> Iterator[str]:
    """A sentence for each split that both were scored on."""
    theirs = {_kind(path): path for path in other.files}
    names = one_line(first.name), one_line(other.name)
    for path in first.files:
        split, answers, data = kind = _kind(path)
        if kind not in theirs:
            continue
        ious, others = _ious(path), _ious(theirs[kind])
        if not ious or ious.keys() != others.keys():
            yield f"{split}: {' and '.join(names)} were scored on different questions"
            continue
        apart = np.array([ious[name] - others[name] for name in ious])
        where = f"{split} of {data}" if data else split
        where += ", own answers" if answers == "generated" else ""
        yield f"{where}: {' − '.join(names)}: gIoU {_told(apart)}"


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
