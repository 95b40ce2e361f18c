"""The Runs tab: evaluates and exports a run in processes of lisa-train, and shows its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from studio.data import Split
from studio.places import Places
from studio.processes import Processes
from studio.training import Chosen
from trainer.answer.scored import scores_folder
from trainer.run.folder import OVERLAY

EXPORTS = "exports"
EVALUATIONS = "evaluations"  # of runs in folders that the page does not write into
PICTURES = (OVERLAY, "evaluation-*/extremes.png")


class Evaluation(Chosen):
    """A run to score on a split of a data set."""

    data: str = Field(max_length=4000)
    split: Split = "val"


class Export(Chosen):
    """A run to write for others, and the new folder's name."""

    name: str = Field(max_length=80)
    merge: bool = False


def evaluate(asked: Evaluation, places: Places, processes: Processes) -> dict[str, Any]:
    """Start `lisa-train evaluate`. Raises ValueError."""
    folder, data = places.folder(asked.run), places.folder(asked.data)
    named = scores_folder(_scored_in(folder, places), folder, data, asked.split)
    target = places.without_links(named)
    command = ["evaluate", str(folder), f"--data-dir={data}", f"--split={asked.split}",
               f"--out={target}"]  # fmt: skip
    processes.start(target, command)
    return {"words": f"scoring {folder.name} on {asked.split} of {data.name}"}


def _scored_in(run: Path, places: Places) -> Path:
    """Where the page scores a run: in it, or below the page's first folder."""
    if run.is_relative_to(places.home):
        return run
    place = places.place(run)
    assert place is not None
    return places.home.joinpath(EVALUATIONS, *place.split("/"))


def files(run: Path, pattern: str, places: Places) -> list[Path]:
    """The files of that name in a run, and where the page scores it."""
    folders = dict.fromkeys((run, _scored_in(run, places)))
    found = [path for folder in folders for path in sorted(folder.glob(pattern))]
    return [path for path in found if places.sees(path)]


def export(asked: Export, places: Places, processes: Processes) -> dict[str, Any]:
    """Start `lisa-train export`. Raises ValueError."""
    folder, target = places.folder(asked.run), places.new(asked.name, EXPORTS)
    if target.exists():
        raise ValueError(f"name: {asked.name} is taken; allowed: a new name")
    command = ["export", str(folder), str(target), *(["--merge"] if asked.merge else [])]
    processes.start(target, command)
    return {"words": f"writing {target.relative_to(places.home).as_posix()}, with a model card"}


def works(folder: Path, processes: Processes) -> Iterator[dict[str, Any]]:
    """What was started for a run beside its training, and how it went."""
    for target in processes.started():
        record = processes.record(target)
        arguments = record["arguments"] if record else []
        if arguments[:1] in (["evaluate"], ["export"]) and arguments[1] == str(folder):
            log = processes.log(target)
            yield {"what": f"{arguments[0]}: {target.name}", "running": processes.running(target),
                   "words": " ".join(log[-1:])}  # fmt: skip


def pictures(folder: Path, places: Places) -> list[str]:
    """The places of a run's picture sheets: its answers, the worst and the best."""
    found = (path for pattern in PICTURES for path in files(folder, pattern, places))
    return [place for path in found if (place := places.place(path)) is not None]
