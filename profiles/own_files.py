"""Which files this product wrote: a command replaces no others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from profiles.files import read_ends, reason

MARK = "Written by lisa-preflight"  # in every file whose content does not show who wrote it
RECORDS = ("run.json", "advice.json", "trained.safetensors")  # of a run, a checkpoint, an export
_ENDS = 1 << 16  # bytes at either end that are looked at


def is_marked(path: Path) -> bool:
    """Whether a regular file has this product's mark near one of its ends. Raises OSError."""
    return any(MARK.encode() in end for end in read_ends(path, _ENDS))


def refuse_others(path: Path, kind: str, is_ours: Callable[[Path], bool] = is_marked) -> None:
    """Raise FileExistsError if there is a file that is not ours, such as `kind`, or is a record.

    An empty file holds nothing to lose. Raises IsADirectoryError for a folder.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it, or another place")
    if any((path.parent / name).exists() for name in RECORDS):
        raise FileExistsError(f"{path}: belongs to a run or an export; name another place")
    hint = "move or delete it, or name another"
    try:
        if path.is_file() and path.stat().st_size == 0 or is_ours(path):
            return
    except OSError as error:
        raise FileExistsError(f"{path}: exists and {_why(error)}; {hint}") from None
    raise FileExistsError(f"{path}: exists and is not {kind} that lisa-preflight wrote; {hint}")


def _why(error: OSError) -> str:
    why = reason(error)
    return why if why.startswith("is ") else f"cannot be read: {why}"
