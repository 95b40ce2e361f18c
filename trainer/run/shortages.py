"""Out-of-memory reports in a run folder, and the new process that takes the place of the run.

An out-of-memory error leaves the process in an unknown state and its memory pool fragmented, so it
does not try again. It writes a report and is replaced by `lisa-train --resume RUN`, which chooses a
smaller plan before it uses the card, and before torch takes seconds to import.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from profiles.environment import python_module
from profiles.files import read_regular, sweep, write_whole
from profiles.shortage import Shortage
from profiles.text import argument, operand

FOLDER, REPORT, ANSWER = "out-of-memory", "shortage.json", "answer.json"


class OutOfMemory(RuntimeError):
    """The run ran out of memory; the report is in its run folder."""


def new_place(folder: Path) -> Path:
    """An empty folder for a report in a run folder; each of several processes gets its own."""
    parent = folder / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        try:
            (parent / f"{number:03}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{number:03}"
    raise OutOfMemory(f"{parent}: too many out-of-memory errors")


def remove_unfinished(folder: Path) -> None:
    """Remove reports in a run folder whose process was killed while it wrote them."""
    for place in (folder / FOLDER).glob("*/"):
        if not (place / REPORT).exists():
            shutil.rmtree(place, ignore_errors=True)
        else:
            sweep(place, (ANSWER,))


def shortages(folder: Path) -> dict[Path, Shortage]:
    """The reports in a run folder by their folders, oldest first; unreadable ones are left out."""
    found = {}
    for place in sorted((folder / FOLDER).glob("*/")):
        try:
            text = read_regular(place / REPORT)
            found[place] = Shortage.model_validate_json(text)
        except (OSError, ValueError):
            continue  # the process was killed while it wrote
    return found


def open_report(folder: Path) -> Path | None:
    """The folder of the last report, if the run has not been resumed since."""
    places = list(shortages(folder))
    return places[-1] if places and not (places[-1] / ANSWER).exists() else None


def write_answer(place: Path, document: dict[str, Any]) -> None:
    """Write beside a report what the run continues with."""
    write_whole(place / ANSWER, json.dumps(document, indent=2) + "\n")


def replace_process(folder: Path) -> NoReturn:
    """Become `lisa-train --resume FOLDER`: the same process id, with the card's memory freed."""
    for child in multiprocessing.active_children():  # data workers, which wait for their parent
        child.kill()
        child.join()
    if sys.platform == "win32":  # has no exec: the parent would see the process end
        raise OutOfMemory(f"out of memory; lisa-train --resume {argument(folder)} continues it")
    command = python_module("trainer.cli", "--resume", operand(folder))
    os.execv(sys.executable, command)
