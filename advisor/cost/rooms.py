"""The disks that a training writes to: what each needs, and what is free there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from advisor.cost.disk import Disk
from profiles.places import cache_folder


@dataclass(frozen=True)
class Room:
    """One disk."""

    what: dict[str, int]  # bytes of what it has to hold
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Bytes of all that the disk has to hold."""
        return sum(self.what.values())


def rooms(disk: Disk) -> list[Room]:
    """The disks of the hub's downloads, of the current folder and of the feature caches.

    Models and runs are assumed to go into the current folder. Raises OSError.
    """
    wanted = (
        ("download", _hub(), disk.download_bytes),
        ("converted model", Path.cwd(), disk.converted_bytes),
        ("run", Path.cwd(), disk.run_bytes),
        ("features", cache_folder(), disk.cache_bytes),
    )
    found: dict[int, dict[str, int]] = {}
    places = {}
    for name, folder, size in wanted:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        device = place.stat().st_dev
        places[device] = place
        found.setdefault(device, {})[name] = size
    return [
        Room({name: size for name, size in what.items() if size},
             shutil.disk_usage(places[device]).free)
        for device, what in found.items() if any(what.values())
    ]  # fmt: skip


def _hub() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(caches) / "huggingface") / "hub"
