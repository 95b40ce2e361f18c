"""Folders that appear at once, when they are complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event, Thread

from profiles.files import HOLDER, force, held, made, sweep

MANY = 1000  # files: from here on one sync of the whole system is faster
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_PAUSE = 5.0  # seconds between two of them while files are still written


def refuse_taken(target: Path) -> None:
    """Raise FileExistsError unless `target` is absent or an empty folder. May raise Held.

    Leftovers of a killed writer are removed.
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


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to write in that becomes `target` at the end, or is removed after an error.

    Leftovers of a killed writer of the same target are removed first. Raises FileExistsError,
    before and after the work, if `target` exists, and Held while another process writes it.
    """
    target = Path(os.path.abspath(target))
    with made(target.parent), _private(target) as private:
        _refuse(target)
        draft = private / target.name
        draft.mkdir()
        try:
            yield draft
            _force_all(draft)  # where a network folder says that it is full
        except OSError as error:
            if error.errno in _FULL and error.filename is None:  # a write knows no name
                error.filename = str(target)
            raise
        _refuse(target)  # another process may have been faster
        if target.exists():
            target.rmdir()
        draft.rename(target)
        force(target.parent)


def _name(target: Path) -> str:
    return f".{target.name}.part"


@contextmanager
def _private(target: Path) -> Iterator[Path]:
    """An empty locked folder beside the target, removed afterwards.

    Only its owner may enter it, so that nobody else reads or replaces unfinished files.
    """
    private = target.parent / _name(target)
    private.mkdir(mode=0o700, parents=True, exist_ok=True)  # another failure may remove a parent
    if os.name == "posix" and (private.is_symlink() or private.stat().st_uid != os.getuid()):
        raise PermissionError(f"{private}: is another user's; delete it, or name another target")
    with held(private):
        try:
            sweep(private, (HOLDER,))
            shutil.rmtree(private / target.name, ignore_errors=True)
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)
    if os.name == "nt":  # where an open file, such as the lock, stays
        shutil.rmtree(private, ignore_errors=True)


def _force_all(folder: Path) -> None:
    """Force a folder's files to disk before it gets its final name."""
    paths = [folder, *islice(_all_in(folder), MANY if hasattr(os, "sync") else None)]
    if len(paths) > MANY and hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        force(path)


def _all_in(folder: Path) -> Iterator[Path]:
    """Like `rglob`, but lazy: rglob lists a folder of a million files before its first result."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _all_in(folder / entry.name)


@contextmanager
def forced_meanwhile() -> Iterator[None]:
    """Force files to disk every few seconds while many are written, beside the work.

    By itself Linux starts to write after half a minute, and the last half minute's files would all
    have to be waited for at the end.
    """
    ended = Event()

    def force_often() -> None:
        while not ended.wait(_PAUSE):
            os.sync()

    if hasattr(os, "sync"):
        Thread(target=force_often, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
