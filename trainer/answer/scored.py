"""Where an evaluation's scores go, and which data and model they belong to; without torch.

Scores on the run's own data and on other data lie side by side in folders `evaluation-…`.
"""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

from profiles.files import read_object, read_regular
from profiles.own_files import refuse_others
from trainer.run.folder import RECORD
from trainer.run.started import CannotResume, Started

SCORES = "scores.json"
LARGEST = 1e300  # of a figure; JSON may hold larger ones, and others that are no numbers
FILES = (SCORES, "images.jsonl", "extremes.png")  # in the order in which they are written


def run_of(model: Path) -> Path | None:
    """The run folder that a run or one of its checkpoints belongs to; None for an export."""
    return next((one for one in (model, model.resolve().parent) if (one / RECORD).is_file()), None)


def scores_folder(
    base: Path, model: Path, data: Path, split: str, *, generated: bool = False
) -> Path:
    """The folder in `base` for a model's scores on a split of `data`.

    For other data than the run's own it is named after that data, with a number if the folder of
    that name holds other figures.
    """
    name = f"evaluation-{split}" + ("-generated" if generated else "")
    if _is_own(model, data):
        return base / name
    called = re.sub(r"\W+", "-", data.resolve().name)[:40].strip("-") or "data"
    names = (f"{name}-on-{called}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(base / one for one in names if not replaced(base / one, data, model))


def _is_own(model: Path, data: Path) -> bool:
    """Whether data are a run's own, as far as that is recorded."""
    run = run_of(model)
    try:
        return run is None or Started.read(run).data.resolve() == data.resolve()
    except CannotResume:
        return True


def refuse_others_figures(folder: Path) -> None:
    """Raise FileExistsError if a folder holds files of these names that are not ours."""
    if {"split", "answers", "plan"} <= read_object(folder / SCORES).keys():
        return
    for name in FILES:
        refuse_others(folder / name, "an evaluation", lambda path: False)


def replaced(folder: Path, data: Path, model: Path) -> list[str]:
    """The other data or model that the figures in a folder belong to, if that can be read."""
    try:
        before = json.loads(read_regular(folder / SCORES))
        pairs = [(Path(before["data"]), data), (Path(before["model"]), model)]
        return [str(then) for then, now in pairs if then.resolve() != now.resolve()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def are_numbers(values: Any) -> bool:
    """Whether it is a list of figures."""
    return isinstance(values, list) and all(
        isinstance(one, int | float) and -LARGEST < one < LARGEST for one in values
    )


def data_named(scores: dict[str, Any]) -> str:
    """The name of the data folder that scores are of; empty where that is not recorded."""
    data = scores.get("data")
    return Path(data).name if isinstance(data, str) else ""
