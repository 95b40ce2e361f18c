"""The Train tab: starts, stops and resumes ordinary `lisa-train` processes."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from pydantic import Field

from profiles.files import HOLDER, writer
from profiles.records import Frozen
from studio.places import Places
from studio.plans import HERE, Wanted
from studio.processes import Processes

RUNS = "runs"


class Training(Frozen):
    """A training to start: data, a saved plan or what to plan for, and the run's name."""

    name: str = Field(max_length=80)
    data: str = Field(max_length=4000)
    plan: str | None = Field(None, max_length=4000)
    wanted: Wanted = Wanted()
    epochs: int | None = Field(None, ge=1, le=10_000)


class Chosen(Frozen):
    """A run, by its place."""

    run: str = Field(max_length=4000)


def start(training: Training, places: Places, processes: Processes) -> dict[str, Any]:
    """Start a training in a new run folder. Raises ValueError."""
    folder = places.new(training.name, RUNS)
    if folder.exists() or processes.running(folder):
        raise ValueError(f"name: {training.name} is taken by an earlier run; allowed: a new name")
    processes.start(folder, arguments(training, folder, places))
    return {"run": f"{next(iter(places.roots))}/{RUNS}/{training.name}"}


def arguments(training: Training, folder: Path, places: Places) -> list[str]:
    """What follows `lisa-train` on a command line. Raises ValueError."""
    found = [f"--data-dir={places.folder(training.data)}", f"--output-dir={folder}"]
    wanted, settings = training.wanted, list[str]()
    if training.plan is not None:  # it has its settings
        found.append(f"--plan={places.path(training.plan)}")
    elif wanted.card != HERE:
        raise ValueError("this plan is for another card; allowed: this machine's, or a saved plan")
    else:
        found += [f"--model={wanted.model}"] if wanted.model is not None else []
        found.append(f"--prefer={wanted.prefer}")
        settings += wanted.assignments(places)
    if training.epochs is not None:
        settings.append(f"schedule.epochs={training.epochs}")
    return found + [f"--set={text}" for text in settings]


def stop(chosen: Chosen, places: Places, processes: Processes) -> dict[str, Any]:
    """Ask a training to save and end, as Ctrl-C does. Raises ValueError."""
    folder = processes.folder_of(chosen.run)
    pid = pid_of(folder) or processes.pid(folder)
    if pid is None:
        raise ValueError(f"{folder.name}: no process of this machine trains in it now")
    if not hasattr(os, "killpg"):
        os.kill(pid, signal.SIGINT)  # which on Windows ends it at once
        return {"words": "ended, since Windows cannot ask it; resume continues its last checkpoint"}
    # As a terminal does: every process of a group that was started for this run.
    (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGINT)
    return {"words": "asked to stop; it saves first"}


def pid_of(folder: Path) -> int | None:
    """The process of this machine that holds a run folder."""
    if writer(folder) is None:
        return None
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return int(holder["pid"]) if holder["host"] == socket.gethostname() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resume(chosen: Chosen, places: Places, processes: Processes) -> dict[str, Any]:
    """Continue a run from its last checkpoint. Raises ValueError."""
    folder = places.own(chosen.run)
    if (busy := writer(folder)) is not None:
        raise ValueError(f"{folder.name}: {busy} is training in it")
    processes.start(folder, [f"--resume={folder}"])
    return {"run": chosen.run}
