"""Folders that appear at once when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def refuse_taken(target: Path) -> None:
    """Raises FileExistsError if `target` is anything but absent or an empty folder."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(
            f"{target}: exists and is not an empty folder; move or delete it, or name another"
        )


def share(path: Path) -> None:
    """Give a file the rights that this user gives new ones: safetensors writes for its owner alone.

    A model or a cache on a shared machine is for others too, unless the umask says otherwise.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `target` if all goes well and vanishes if not.

    Raises FileExistsError, before and after the work, for a target that is taken.
    """
    target = Path(os.path.abspath(target))
    refuse_taken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a folder that only its owner may enter, so that nobody reads or swaps what is half done.
    with TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True
    ) as private:
        draft = Path(private) / target.name
        draft.mkdir()
        yield draft
        refuse_taken(target)  # someone else may have come first
        if target.exists():
            target.rmdir()
        draft.rename(target)
