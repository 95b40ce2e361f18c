"""Runs whose launcher starts them again after a failure: `torchrun --max-restarts N`.

The launcher repeats its command; the run that the first attempt began is found and resumed.
"""

from __future__ import annotations

import os
import socket
from itertools import takewhile
from pathlib import Path

from trainer.parallel.launch import is_launched
from trainer.run.folder import LATEST, RECORD, places
from trainer.run.started import CannotResume, Started


def launcher_name() -> str:
    """A unique name for the launcher that started this process; '' if none did."""
    if not is_launched(os.environ):
        return ""
    import psutil

    parent = psutil.Process(os.getppid())
    return f"{parent.pid} on {socket.gethostname()}, since {parent.create_time()}"


def begun_before(wanted: Path) -> Path | None:
    """The run folder that this launcher took for `wanted` at an earlier attempt."""
    name = launcher_name()
    if not name:
        return None
    folders = takewhile(Path.exists, places(wanted)) if wanted == LATEST else [wanted]
    return next((folder for folder in folders if _began(name, folder)), None)


def _began(name: str, folder: Path) -> bool:
    try:
        return (folder / RECORD).exists() and Started.read(folder).launcher == name
    except CannotResume:
        return False
