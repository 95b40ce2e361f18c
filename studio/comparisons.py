"""The Runs tab: how far apart runs are that were scored on the same questions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from profiles.records import Frozen
from studio.places import Places
from studio.results import files
from trainer.answer.compared import SCORED, Scored, differences


class Compared(Frozen):
    """Runs to compare, by their places; the first one with each of the others."""

    runs: tuple[str, ...] = Field(min_length=2, max_length=6)


def compare(asked: Compared, places: Places) -> dict[str, Any]:
    """The differences between runs that were scored on the same questions, in words."""
    folders = [places.folder(run) for run in dict.fromkeys(asked.runs)]
    first, *others = [Scored(run.name, files(run, SCORED, places)) for run in folders]
    return {"differences": [line for other in others for line in differences(first, other)]}
