"""Where a run's checkpoints lie: put into place, ordered by age, recovered after a kill.

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
    """Remove what kills left of a checkpoint, now that a whole one is in its place."""
    for left in hidden(folder):
        shutil.rmtree(left, ignore_errors=True)


def put_in_place(new: Path, folder: Path, earlier: Sequence[Path]) -> None:
    """Rename `new` to `folder`; those before move on, and the last of them goes."""
    gone = folder.with_name(f".{folder.name}-old")
    places = [folder, *earlier]
    if new == gone:
        new = new.rename(folder.with_name(f".{folder.name}-0"))
    # Up to the first place that is empty: the rest need not move.
    moving = next((n for n, place in enumerate(places) if not place.exists()), len(places))
    if moving == len(places):
        shutil.rmtree(gone, ignore_errors=True)
    for newer, older in reversed(list(pairwise([*places, gone][: moving + 1]))):
        os.replace(newer, older)
    os.replace(new, folder)
    force(folder.parent)


def hidden(folder: Path) -> list[Path]:
    """What kills left of a checkpoint: half written, whole, or half removed."""
    return [path for path in folder.parent.glob(f".{folder.name}-*") if path.is_dir()]


def by_age(folder: Path, visible: Sequence[Path]) -> list[Path]:
    """The `visible` folders of a checkpoint, the newer first, and its hidden ones; newest first.

    The number of its save decides, which its facts hold; one without facts stays where its name
    puts it. An earlier version's have no number: there the step decides.
    """
    aside = hidden(folder)
    old = [path for path in aside if path.name.endswith("-old")]
    places = [*(path for path in aside if path not in old), *visible, *old]
    ages: list[tuple[float, float]] = [(math.inf, 0)]  # of what is written last
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
    """Give a whole checkpoint that a kill left hidden its place; other leftovers go."""
    if good.name.startswith("."):
        put_in_place(good, folder, earlier)
    remove_leftovers(folder)


def recover(folder: Path) -> None:
    """Put a checkpoint back that a kill took away between two renames, if one is whole."""
    if folder.exists():
        return remove_leftovers(folder)
    whole = [path for path in by_age(folder, []) if not altered(path)]
    if whole:
        restore_place(whole[0], folder)
