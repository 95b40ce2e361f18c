"""Folders that appear at once when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from profiles.files import HOLDER, force, held, sweep

MANY = 1000  # files: one by one would take longer than asking for all of the system's


def refuse_taken(target: Path) -> None:
    """Raises FileExistsError if `target` is anything but absent or an empty folder, and Held.

    What a killed writer of it left goes.
    """
    target = Path(os.path.abspath(target))
    if (target.parent / _name(target)).exists():
        with _private(target):
            pass
    _refuse(target)


def _refuse(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(
            f"{target}: exists and is not an empty folder; move or delete it, or name another"
        )


def apply_umask(path: Path) -> None:
    """Give a file the rights that this user gives new ones: safetensors writes for its owner alone.

    A model or a cache on a shared machine is for others too, unless the umask says otherwise.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `target` if all goes well and vanishes if not.

    What a killed writer of the same target left goes first. Raises FileExistsError, before and
    after the work, for a target that is taken, and Held while another process writes it.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _private(target) as private:
        _refuse(target)
        draft = private / target.name
        draft.mkdir()
        yield draft
        _refuse(target)  # someone else may have come first
        _force_all(draft)
        if target.exists():
            target.rmdir()
        draft.rename(target)
        force(target.parent)


def _name(target: Path) -> str:
    return f".{target.name}.part"


@contextmanager
def _private(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, held, that vanishes afterwards.

    Only its owner may enter, so that nobody else reads or swaps what is half done.
    """
    private = target.parent / _name(target)
    private.mkdir(mode=0o700, exist_ok=True)
    if os.name == "posix" and (private.is_symlink() or private.stat().st_uid != os.getuid()):
        raise PermissionError(f"{private}: is another user's; delete it, or name another target")
    with held(private):
        try:
            sweep(private, (HOLDER,))
            shutil.rmtree(private / target.name, ignore_errors=True)
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)


def _force_all(folder: Path) -> None:
    """Have a folder's files reach the disk before its name says that it is whole."""
    paths = [folder, *islice(folder.rglob("*"), MANY if hasattr(os, "sync") else None)]
    if len(paths) > MANY and hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        force(path)
