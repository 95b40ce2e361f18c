"""Where ReasonSeg is below a data folder; checked before anything takes long to search it."""

from __future__ import annotations

from pathlib import Path

from profiles.text import argument

SPLITS = ("train", "val", "test")
_ANNOTATIONS = ("*.json", "annotations/*.json", "data.yaml", "classes.txt")
MIXED = "refer_seg", "sem_seg", "vqa", "ade20k"  # data of a mixture: docs/data.md
NEEDED = "ReasonSeg/train, ReasonSeg/val or ReasonSeg/test in it"
MAKES_DATA = "lisa-train import FILES NEW makes it of another tool's; synthesise NEW draws some"


def located(root: Path) -> tuple[Path, list[str]] | None:
    """The folder that holds the splits, and the splits that are there; None if none are."""
    # The most specific first: a data folder may well have an unrelated `train` of its own.
    for folder in (root / "ReasonSeg", root / "reason_seg" / "ReasonSeg", root):
        present = [split for split in SPLITS if (folder / split).is_dir()]
        if present:
            return folder, present
    return None


def remedy(root: Path) -> str:
    """The command that turns a folder's content into ReasonSeg data; empty for unknown content."""
    if any(any(root.glob(pattern)) for pattern in _ANNOTATIONS):
        return f"lisa-train import {argument(root)} NEW makes it of the annotations there"
    mixed = next((name for name in MIXED if (root / name).is_dir()), None)
    if mixed is None:
        return ""
    return f"{mixed} is trained on, not scored: put ReasonSeg beside it; {MAKES_DATA}"
