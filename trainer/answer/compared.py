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
        yield f"{where}: {_sentence(apart, *names)}"


def _kind(path: Path) -> tuple[str, str, str]:
    """Identifies what was scored: equal for two runs whose scores can be compared."""
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


def _sentence(apart: np.ndarray, name: str, other: str) -> str:
    """Which run is better on average, if the difference is more than the choice of questions makes.

    The interval is that of `MaskScores.intervals`, over the differences question by question, so
    questions that are easy or hard for both runs do not widen it.
    """
    of, mean = counted(len(apart), "question"), apart.mean()
    if len(apart) < 2:
        return f"{name} has gIoU {mean:+.3f} against {other}; {of} cannot tell which is better"
    if not apart.any():
        return f"{name} and {other} score the same on each of {of}"
    ((low, high),) = bootstrapped(len(apart), lambda drawn: (apart[drawn].mean(),))
    if high < 0:
        return _sentence(-apart, other, name)
    interval = f"95 % interval {low:+.3f} to {high:+.3f}, {of}"
    if low > 0:
        return f"{name} is better than {other}: gIoU {mean:+.3f} ({interval})"
    return (
        f"too close to call: {name} has gIoU {mean:+.3f} against {other} ({interval}); "
        "with other questions the other run could be ahead"
    )
