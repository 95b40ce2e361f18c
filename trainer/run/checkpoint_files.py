"""A checkpoint's own files: checksums, written when it is complete and compared when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from profiles.files import opened, read_object, read_regular
from trainer.run.folder import STATE, TRAINED

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files beside them."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def altered(folder: Path, only: Set[str] | None = None) -> str:
    """What is wrong with a checkpoint's files, by their checksums; '' if nothing is."""
    try:
        sums = json.loads(read_regular(folder / MANIFEST))
        for name, expected in sums.items():
            if only is not None and name not in only:
                continue
            if Path(name).name != name or checksum(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{MANIFEST}: {error}"
    return "" if TRAINED in sums else f"{TRAINED} has no checksum"


def damage(folder: Path) -> str:
    """Why a checkpoint cannot be resumed from; '' if it can."""
    wrong = altered(folder)
    return wrong or ("" if (folder / STATE).is_file() else "holds no state to resume from")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_facts(folder: Path) -> dict[str, Any]:
    """What the run recorded about a checkpoint; empty if the file is missing or damaged."""
    return read_object(folder / "facts.json")
