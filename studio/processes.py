"""Processes that outlive the page: lisa-train's own commands, each with a log and a record.

They are ordinary processes in a session of their own. The record says when a process began, since
the system uses its number again: so a page that is opened later finds what still runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil

from profiles.environment import at_home, python_module
from profiles.files import read_ends, write_whole
from profiles.text import printable
from studio.places import NoSuchPlace, Places

FOLDER = ".lisa-studio"  # below the page's first folder, hidden from its pickers
TAIL = 32 << 10  # bytes of a log that are shown


class Processes:
    """The processes that this page has started, by the folder that each works on."""

    def __init__(self, places: Places) -> None:
        self.places, self.home, self.folder = places, places.home, places.home / FOLDER
        self.children: list[subprocess.Popen[bytes]] = []
        self.starting = threading.Lock()  # requests are answered in threads

    def start(self, target: Path, arguments: Sequence[str]) -> None:
        """Start `lisa-train ARGUMENTS` for a folder. Raises ValueError if one runs for it."""
        with self.starting:
            self._start(target, arguments)

    def _start(self, target: Path, arguments: Sequence[str]) -> None:
        if self.running(target):
            raise ValueError(f"{target.name}: a process is at work on it already; wait for its end")
        self.folder.mkdir(exist_ok=True)
        command = python_module("trainer.cli", *arguments)
        with self._path(target, "log").open("wb") as log:
            # A session of its own: the end of the page, or of its terminal, is not its end.
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=self.home, env=at_home(os.environ),
            )  # fmt: skip
        self.children.append(child)
        record = {"pid": child.pid, "began": _began(child.pid), "arguments": list(arguments)}
        write_whole(self._path(target, "json"), json.dumps(record) + "\n")

    def running(self, target: Path) -> bool:
        """Whether a process that was started for a folder still runs."""
        return self.pid(target) is not None

    def pid(self, target: Path) -> int | None:
        """The process that was started for a folder and still runs."""
        self.children = [one for one in self.children if one.poll() is None]  # else they stay
        record = self.record(target)
        if record is None or record["began"] is None or _began(record["pid"]) != record["began"]:
            return None
        return int(record["pid"])

    def record(self, target: Path) -> dict[str, Any] | None:
        """What was last started for a folder; None for nothing."""
        try:
            found = json.loads(self._path(target, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        match found:
            case {"pid": int(), "began": _, "arguments": [*words]}:
                return found if all(isinstance(one, str) for one in words) else None
        return None

    def started(self) -> list[Path]:
        """The folders that processes were started for."""
        found = (path.stem.split("~") for path in sorted(self.folder.glob("*.json")))
        return [self.home.joinpath(*map(unquote, parts)) for parts in found]

    def folder_of(self, run: str) -> Path:
        """The folder of a run, or where one will be that was just started. Raises NoSuchPlace."""
        try:
            return self.places.folder(run)
        except NoSuchPlace:
            for folder in self.started():
                if self.places.place(folder) == run and not folder.exists():
                    return folder
            raise

    def log(self, target: Path) -> list[str]:
        """The last lines that the process has printed."""
        try:
            first, last = read_ends(self._path(target, "log"), TAIL)
        except OSError:
            return []
        return printable((last or first).decode("utf-8", "replace")).splitlines()

    def _path(self, target: Path, kind: str) -> Path:
        parts = target.relative_to(self.home).parts
        # A tilde of a folder's own name must not be taken for one between two names.
        name = "~".join(one.replace("%", "%25").replace("~", "%7E") for one in parts)
        return self.folder / f"{name}.{kind}"


def _began(pid: object) -> float | None:
    """When the process with that number began; None if there is none, or it has ended."""
    try:
        process = psutil.Process(int(str(pid)))
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else process.create_time()
    except (psutil.Error, ValueError):
        return None
