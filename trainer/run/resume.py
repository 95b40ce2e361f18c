"""Resuming a run: from which checkpoint, and what may have changed since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from profiles.levers import MAY_CHANGE_ON_RESUME
from profiles.overrides import assigned
from profiles.plan import Plan
from trainer.run.checkpoint_files import damage, read_facts
from trainer.run.checkpoint_places import by_age, recover, restore_place
from trainer.run.folder import LAST
from trainer.run.started import CannotResume

DAMAGED = "damaged"  # where a damaged checkpoint is moved
EPOCHS = "schedule.epochs"


def check_plan(now: Plan, before: Plan) -> list[str]:
    """Changes since the checkpoint's plan. Raises CannotResume for those that must not be.

    More epochs are no such change: the rest of the run says what follows (`State.restore`).
    """
    old, new = (flat_settings(plan.model_dump(mode="json")) for plan in (before, now))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if now.schedule.epochs > before.schedule.epochs:
        changed.remove(EPOCHS)
    lines = {name: f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed}
    refused = [line for name, line in lines.items() if name not in MAY_CHANGE_ON_RESUME]
    if refused:
        listed = "\n    ".join(refused)
        raise CannotResume(
            f"the run's plan.json is not the plan of its checkpoint\n    {listed}\n"
            "    hint: put these back, or begin a new run"
        )
    return list(lines.values())


def check_base(checkpoint: Path, here: str) -> None:
    """Raise CannotResume if a checkpoint was trained on other base weights than those here."""
    base = read_facts(checkpoint).get("base")
    if base not in (None, here):
        raise CannotResume(
            f"{checkpoint}: was trained on base weights {base}; those here are {here}\n"
            "    hint: --set weights=FOLDER names the folder of those, or begin a new run"
        )


def with_more_epochs(plan: Plan, changes: Sequence[str], folder: Path) -> bool:
    """Whether the user's changes make a run longer. Raises CannotResume if they make it shorter."""
    if EPOCHS not in assigned(changes):
        return False
    had, wanted = plan.schedule.epochs, plan.override(changes).schedule.epochs
    if wanted <= had:
        raise CannotResume(f"--epochs: got {wanted}; allowed: more than the {had} that {folder} has"
                           f"\n    hint: --epochs {had + 1}, or a new run")  # fmt: skip
    return True


def flat_settings(settings: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, dict)
        found |= flat_settings(value, f"{head}{name}.") if inner else {head + name: value}
    return found


def resumable(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The run's newest undamaged checkpoint; None if it has none yet. Raises CannotResume.

    It may still have a hidden name if a save was killed: `tidy` moves it into place.
    """
    damaged: list[str] = []
    for candidate in _newest_first(folder):
        wrong = damage(candidate)
        if not wrong:
            if damaged:
                tell(f"{'; '.join(damaged)}: continuing from {candidate}; what is damaged is moved "
                     f"to {folder / DAMAGED}")  # fmt: skip
            return candidate
        if not candidate.name.startswith("."):  # a hidden one is only unfinished
            damaged.append(f"{candidate}: {wrong}")
    best = folder / "best"
    others = f"; {best} can still be evaluated" if best.is_dir() else ""
    if damaged:
        listed = "\n    ".join(damaged)
        raise CannotResume(f"no checkpoint of this run is whole:\n    {listed}\n"
                           f"    hint: begin a new run{others}")  # fmt: skip
    if best.is_dir():
        raise CannotResume(f"{folder}: its checkpoints to resume from are gone\n"
                           f"    hint: begin a new run{others}")  # fmt: skip
    tell(f"{folder}: no checkpoint yet: starting from the beginning")
    return None


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a run folder that hold a state, newest first."""
    earlier = [p for p in folder.glob(f"{LAST}-*") if p.name[len(LAST) + 1 :].isdigit()]
    earlier.sort(key=lambda path: int(path.name[len(LAST) + 1 :]))
    return by_age(folder / LAST, [folder / LAST, *earlier])


def tidy(folder: Path, good: Path, earlier: Sequence[Path]) -> None:
    """Move `good`, and `best`, into their places, as if no save had been killed.

    Checkpoints newer than `good` are all damaged and are moved away: otherwise the next save would
    push out the good one and keep a damaged one.
    """
    for place in _newest_first(folder):
        if place == good:
            break
        if place.name.startswith("."):
            shutil.rmtree(place, ignore_errors=True)
        else:
            shutil.rmtree(folder / DAMAGED, ignore_errors=True)
            os.replace(place, folder / DAMAGED)
    restore_place(good, folder / LAST, earlier)
    recover(folder / "best")


def changes(facts: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """Which library versions have changed since a checkpoint was saved."""
    before = facts.get("versions", {})
    return [
        f"{name} {before.get(name, 'unknown')} -> {now}"
        for name, now in versions.items()
        if before.get(name) != now
    ]
