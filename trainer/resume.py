"""Going on with a run: what it began with, what has changed since, and being asked to stop."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profiles.plan import Plan
from profiles.text import one_line
from trainer import checkpoint
from trainer.data.mixture import MixedSets
from trainer.data.reasonseg import Item

RECORD = "run.json"
LAST, DAMAGED = "last", "damaged"
SHOWN = 5  # changed items
# What a run may go on with otherwise than it began: it learns the same from the same samples.
MAY_CHANGE = frozenset({
    "quantization", "compile", "host_embeddings", "host_layers", "micro_batch", "accumulation",
    "checkpointed_layers", "processes", "workers", "allocator", "cached_encoders", "weights",
})  # fmt: skip


class CannotResume(ValueError):
    """A run that cannot go on as it was; says what is in the way."""


@dataclass(frozen=True)
class Keeping:
    """When a run saves, how many checkpoints it can go on from, and whom it waits for."""

    minutes: float = 10.0  # between two checkpoints, so that a kill costs that much at most
    steps: int | None = None  # the same in optimizer steps
    checkpoints: int = 2
    wait_minutes: float = 0.0  # for memory that other processes took

    def earlier(self, folder: Path) -> list[Path]:
        """Where the checkpoints before the last one lie in a run folder, the newer first."""
        return [folder / f"{LAST}-{n}" for n in range(1, self.checkpoints)]


USUAL = Keeping()


@dataclass(frozen=True)
class Started:
    """Where a run's data and caches are, what its data were, and how it was asked for."""

    data: Path
    cache: Path
    digests: dict[str, dict[str, str]]  # split -> item -> digest of annotation and picture
    keeping: Keeping = USUAL
    pinned: tuple[str, ...] = ()  # settings that the user named
    environment: dict[str, str] = field(default_factory=dict)  # such as which card
    skip_broken: int = 0  # entries of the data that may be left out

    def write(self, folder: Path) -> None:
        """Into the run folder."""
        document = asdict(self) | {"data": str(self.data.resolve()),
                                   "cache": str(self.cache.resolve())}  # fmt: skip
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        checkpoint.write_whole(folder / RECORD, text)

    @classmethod
    def read(cls, folder: Path) -> Started:
        """From a run folder. Raises CannotResume."""
        try:
            return TypeAdapter(cls).validate_json((folder / RECORD).read_bytes())
        except ValidationError as error:
            what = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise CannotResume(
                f"{folder / RECORD}: damaged ({what})\n"
                "    hint: no run to go on with; begin a new one"
            ) from None
        except OSError as error:
            raise CannotResume(
                f"{folder}: no run to go on with ({error})\n"
                "    hint: --resume names the --output-dir of a lisa-train run"
            ) from None


def digests(
    train: Sequence[Item] | MixedSets, val: Sequence[Item], left_out: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """What tells the data from others: of each item its annotation's bytes and picture's size.

    Of a mixture the number of its draws and pictures stands for all, and what is broken in it and
    `left_out`, as mending it would change every draw.
    """
    if isinstance(train, MixedSets):
        drawn = {"mixture": str(len(train))} | dict.fromkeys(sorted(left_out), "left out")
        return {"train": drawn, "val": dict(map(_digest, val))}
    return {"train": dict(map(_digest, train)), "val": dict(map(_digest, val))}


def _digest(item: Item) -> tuple[str, str]:
    annotation = hashlib.sha256(item.json_path.read_bytes())
    annotation.update(repr((item.explanations, item.image_path.stat().st_size)).encode())
    return item.name, annotation.hexdigest()[:16]


def check_data(before: Started, now: dict[str, dict[str, str]]) -> None:
    """Raise CannotResume, item by item, if the data are others than the run began with."""
    lines = []
    for split, items in now.items():
        known = before.digests.get(split, {})
        changed = [name for name in items if known.get(name) != items[name]]
        gone = [name for name in known if name not in items]
        for what, names in (("changed or new", changed), ("gone", gone)):
            if names:
                shown = ", ".join(map(one_line, names[:SHOWN])) + (
                    " …" if len(names) > SHOWN else ""
                )
                lines.append(f"{split}: {len(names)} {what}: {shown}")
    if lines:
        listed = "\n    ".join(lines)
        raise CannotResume(
            f"{before.data}: not the data that this run began with\n    {listed}\n"
            "    hint: put them back, or begin a new run"
        )


def check_plan(now: Plan, before: Plan) -> list[str]:
    """What has changed since the checkpoint's plan. Raises CannotResume for what must not."""
    old, new = (_flat(plan.model_dump(mode="json")) for plan in (before, now))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    lines = {name: f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed}
    refused = [line for name, line in lines.items() if name not in MAY_CHANGE]
    if refused:
        listed = "\n    ".join(refused)
        raise CannotResume(
            f"the run's plan.json is not the plan of its checkpoint\n    {listed}\n"
            "    hint: put these back, or begin a new run"
        )
    return list(lines.values())


def _flat(settings: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{head}{name}.") if inner else {head + name: value}
    return found


def resumable(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The run's newest whole checkpoint, None where it has none yet. Raises CannotResume."""
    damaged: list[str] = []
    for candidate, wrong in checkpoint.newest(_places(folder)):
        if not wrong:
            if damaged:
                tell(f"{'; '.join(damaged)}: going on from {candidate}; what is damaged is moved "
                     f"to {folder / DAMAGED}")  # fmt: skip
            return candidate
        damaged.append(f"{candidate}: {wrong}")
    best = folder / "best"
    others = f"; {best} can still be evaluated" if best.is_dir() else ""
    if damaged:
        listed = "\n    ".join(damaged)
        raise CannotResume(f"no checkpoint of this run is whole:\n    {listed}\n"
                           f"    hint: begin a new run{others}")  # fmt: skip
    if best.is_dir():
        raise CannotResume(f"{folder}: its checkpoints to go on from are gone\n"
                           f"    hint: begin a new run{others}")  # fmt: skip
    tell(f"{folder}: no checkpoint yet, from the beginning")
    return None


def _places(folder: Path) -> list[Path]:
    """Where checkpoints to go on from lie in a run folder, the newest first."""
    earlier = [p for p in folder.glob(f"{LAST}-*") if p.name[len(LAST) + 1 :].isdigit()]
    return [folder / LAST, *sorted(earlier, key=lambda p: int(p.name[len(LAST) + 1 :]))]


def set_aside_newer(folder: Path, good: Path) -> None:
    """Move checkpoints newer than `good`, all damaged, out of the way of those that come.

    Else the next one saved would push the good one out, and keep a damaged one in its place.
    """
    for place in _places(folder):
        if place == good:
            return
        if place.is_dir():
            shutil.rmtree(folder / DAMAGED, ignore_errors=True)
            os.replace(place, folder / DAMAGED)


def changes(facts: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """Which library versions are others than a checkpoint was made with."""
    before = facts.get("versions", {})
    return [
        f"{name} {before.get(name, 'unknown')} -> {now}"
        for name, now in versions.items()
        if before.get(name) != now
    ]


class Stop:
    """Whether the user or the system has asked the run to end; a second time ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask; what they did before comes back afterwards."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: object) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
