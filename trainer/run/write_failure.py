"""Why a checkpoint could not be written, with the figures that the system reports."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from profiles.files import reason
from profiles.sizes import mib
from profiles.text import argument
from trainer.run.folder import STATE


class NotWritten(RuntimeError):
    """A checkpoint that could not be written; the one before is untouched."""


def write_failure(error: OSError, folder: Path, size: int, crowded: bool) -> NotWritten:
    """The error with its cause, the system's figures, and what a resume will find.

    `crowded`: no inode was free when it failed. A start that saved nothing leaves no run folder.
    """
    why, fix = _cause(error, folder.parent, size, crowded)
    if any((place / STATE).is_file() for place in folder.parent.iterdir()):
        then = f"lisa-train --resume {argument(folder.parent)}; the checkpoint before is whole"
    else:
        then = "the same command again; there is no earlier checkpoint"
    return NotWritten(
        f"{folder}: the checkpoint could not be written, {why}\n    hint: {fix}, then {then}"
    )


def _cause(error: OSError, place: Path, size: int, crowded: bool) -> tuple[str, str]:
    """Why `size` bytes could not be written into `place`, and the remedy."""
    number, free = error.errno, shutil.disk_usage(place).free
    if number == errno.EROFS:
        return "the file system is read-only", "have it mounted for writing"
    if number in (errno.EACCES, errno.EPERM):
        return f"permission denied ({error})", f"make {place} writable for you"
    if number == errno.EDQUOT:
        return f"your quota is used up: {mib(size)} needed", "delete what you can spare"
    if number == errno.EFBIG:
        return f"no file may be as large: {mib(size)} needed", "allow larger files (ulimit -f)"
    if number == errno.ENOSPC and crowded:
        return (
            f"the disk takes no more files: no inode is free, though {mib(free)} are",
            "delete files, however small",
        )
    if number == errno.ENOSPC or free < size:
        return f"the disk is full: {mib(size)} needed, {mib(free)} free", "make room"
    return f"{reason(error)}: {mib(size)} needed, {mib(free)} free", "fix that"


def no_inode(place: Path) -> bool:
    """Whether the file system has no inode left; False where inodes are not counted (Windows)."""
    if not hasattr(os, "statvfs"):
        return False
    counts = os.statvfs(place)
    return counts.f_files > 0 and counts.f_favail == 0
