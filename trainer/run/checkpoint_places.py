"""A run's checkpoint folders: put into place, ordered by age, recovered after a kill.

A kill between two renames leaves a complete checkpoint under a hidden name; the facts of each say
which is the newest.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from profiles.files import force
from trainer.run.checkpoint_files import altered, read_facts


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves left, now that a complete checkpoint is in its place."""
    for left in hidden(folder):
        shutil.rmtree(left, ignore_errors=True)


def put_in_place(new: Path, folder: Path, earlier: Sequence[Path]) -> None:
    """Rename `new` to `folder`; earlier ones move one place on, and the last is removed."""
    gone = folder.with_name(f".{folder.name}-old")
    places = [folder, *earlier]
    if new == gone:
        new = new.rename(folder.with_name(f".{folder.name}-0"))
    # Checkpoints behind the first empty place need not move.
    moving = next((n for n, place in enumerate(places) if not place.exists()), len(places))
    if moving == len(places):
        shutil.rmtree(gone, ignore_errors=True)
    for newer, older in reversed(list(pairwise([*places, gone][: moving + 1]))):
        os.replace(newer, older)
    os.replace(new, folder)
    force(folder.parent)


def hidden(folder: Path) -> list[Path]:
    """What killed saves left of a checkpoint: half written, complete, or half removed."""
    return [path for path in folder.parent.glob(f".{folder.name}-*") if path.is_dir()]


def by_age(folder: Path, visible: Sequence[Path]) -> list[Path]:
    """The `visible` folders of a checkpoint (newer ones first) and its hidden ones, newest first.

    Ordered by the number of the save in their facts; earlier versions wrote none: then by step. A
    checkpoint without facts stays where its name puts it.
    """
    aside = hidden(folder)
    old = [path for path in aside if path.name.endswith("-old")]
    places = [*(path for path in aside if path not in old), *visible, *old]
    ages: list[tuple[float, float]] = [(math.inf, 0)]  # of the one that is written last
    for place in places:
        facts = read_facts(place)
        match facts.get("save", 0), facts.get("step"):
            case int(save), int(step):
                ages.append((save, step))
            case _:
                ages.append(ages[-1])
    order = sorted(range(len(places)), key=lambda n: ages[n + 1], reverse=True)  # stable
    return [places[n] for n in order if places[n].is_dir()]


def restore_place(good: Path, folder: Path, earlier: Sequence[Path] = ()) -> None:
    """Move a complete checkpoint from a hidden name to its place; remove other leftovers."""
    if good.name.startswith("."):
        put_in_place(good, folder, earlier)
    remove_leftovers(folder)


def recover(folder: Path) -> None:
    """Restore a checkpoint that a kill between two renames left under a hidden name, if any."""
    if folder.exists():
        return remove_leftovers(folder)
    whole = [path for path in by_age(folder, []) if not altered(path)]
    if whole:
        restore_place(whole[0], folder)
