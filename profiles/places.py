"""Where this user's own files are: caches, and rows of the tested table.

In a container the home may be read-only, missing or undefined. What can be made again then goes
to a temporary folder that nobody else may enter, and a note says so once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from profiles.streams import tell

NAME = "lisa-preflight"


def cache_folder() -> Path:
    """The folder of what can be computed again: features, forecasts, contexts, compiled code."""
    return usable(_usual("user_cache_path")) or _temporary() / "cache"


def data_folder() -> Path:
    """The folder of the user's own rows of the tested table."""
    return usable(_usual("user_data_path")) or _temporary() / "data"


def caches_stay() -> bool:
    """Whether the user's own folder for caches can be written."""
    return usable(_usual("user_cache_path")) is not None


def libraries_caches() -> dict[str, str]:
    """Variables that keep other libraries' caches out of a home that cannot be written."""
    if usable(Path(os.path.expanduser("~")) / ".cache"):
        return {}
    return {
        "HF_HOME": str(cache_folder() / "huggingface"),
        "MPLCONFIGDIR": str(cache_folder() / "matplotlib"),
        "TRITON_CACHE_DIR": str(cache_folder() / "triton"),
    }


def _usual(kind: str) -> Path | None:
    """The system's folder for such files; None if this user has no home."""
    import platformdirs

    try:
        found: Path = getattr(platformdirs, kind)(NAME, appauthor=False)
    except RuntimeError:
        return None
    return found if found.is_absolute() else None  # older versions answer "~/.cache"


def usable(folder: Path | None) -> Path | None:
    """The folder, if files can be made in it or it can be made; None if not. Nothing is left."""
    if folder is None:
        return None
    try:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        allowed = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        return folder if allowed and _takes_files(there) else None
    except OSError:
        return None


@cache
def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in it: rights alone do not show quotas, automounts or /proc."""
    try:
        with tempfile.TemporaryFile(prefix=f".{NAME}-", dir=folder):
            return True
    except OSError:
        return False


@cache
def _temporary() -> Path:
    """This user's own folder among the temporary ones, kept from one command to the next."""
    place = Path(tempfile.gettempdir()) / f"{NAME}-{_user()}"
    if not _is_ours(place):  # another user was first: then for this process alone
        place = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    if "RANK" not in os.environ:  # said once, not by every process of a training
        tell(f"note: the home folder cannot be written: caches go to {place}\n"
             "    hint: XDG_CACHE_HOME and XDG_DATA_HOME name folders that stay")  # fmt: skip
    return place


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else ""


def _is_ours(place: Path) -> bool:
    """Whether this is a folder of this user that nobody else may enter; made if it is missing."""
    if not _user():
        return False
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.getuid() and os.access(place, os.W_OK)
