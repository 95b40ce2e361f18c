"""Digests of pictures, computed once: afterwards each picture costs one stat.

They are kept in a JSON file in the cache folder, one for each data folder. A picture of the same
size and mtime (in nanoseconds) as when it was read counts as unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from profiles.files import STALE_SECONDS, read_regular, sweep, write_whole
from trainer.data.threads import in_threads
from trainer.reporter import Progress

_Known: TypeAlias = dict[str, tuple[int, int, str]]  # path -> size, mtime in ns, digest
_BLOCK = 1 << 20
DIGITS = 16


class Contents:
    """Digests of the files in a data folder, kept in the folder `cache` unless that is None.

    `progress` reports how many pictures have been read, of those that must be.
    """

    def __init__(
        self, root: Path = Path(), cache: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.root, self._progress = root, progress
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:DIGITS]
        self._place = None if cache is None else cache / f"contents-{name}.json"
        self._known: _Known = _read(self._place) if self._place else {}

    def of(self, paths: Sequence[Path]) -> dict[str, str]:
        """The digest of each file by its path from the root. Raises OSError."""
        found: _Known = {}
        new: dict[str, Path] = {}
        for path in paths:
            name = Path(os.path.relpath(path, self.root)).as_posix()
            now, known = path.stat(), self._known.get(name)
            if known is not None and known[:2] == (now.st_size, now.st_mtime_ns):
                found[name] = known
            else:  # stat before reading, so that a later change is noticed next time
                found[name], new[name] = (now.st_size, now.st_mtime_ns, ""), path
        digests = in_threads(digest, new.values())
        for done, (name, one) in enumerate(zip(new, digests, strict=True), start=1):
            found[name] = (*found[name][:2], one)
            if self._progress is not None:
                self._progress("reading the pictures' bytes", done, len(new))
        if new:
            self._known |= found
            self._keep()
        return {name: one for name, (_, _, one) in found.items()}

    def _keep(self) -> None:
        """Save for the next time; if that fails, digests are computed again then."""
        if self._place is not None:
            try:
                self._place.parent.mkdir(parents=True, exist_ok=True)
                sweep(self._place.parent, [self._place.name], STALE_SECONDS)
                write_whole(self._place, json.dumps(self._known))
            except OSError:
                pass


def digest(path: Path) -> str:
    """The digest of a file's bytes. Raises OSError."""
    found = hashlib.blake2b(digest_size=DIGITS // 2)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _read(place: Path) -> _Known:
    """The saved digests; empty if the file is damaged."""
    try:
        rows = json.loads(read_regular(place)).items()
        return {name: (int(size), int(age), str(one)) for name, (size, age, one) in rows}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
