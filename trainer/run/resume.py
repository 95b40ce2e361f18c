"""Going on with a run: what it began with, what has changed since, and being asked to stop."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from profiles.files import read_regular, reason, write_whole
from profiles.levers import MAY_CHANGE_ON_RESUME
from profiles.plan import Plan
from profiles.text import one_line
from trainer.data.contents import Contents
from trainer.data.formats.reasonseg import Item, ReasoningPicture
from trainer.data.mixture import MixedSets
from trainer.data.pictures import DataSet
from trainer.run import checkpoint
from trainer.run.folder import RECORD

# split -> item -> digest of its annotation and its picture's size;
# split's pictures -> path, or data set -> digest of the content, or of its pictures' sizes
Digests: TypeAlias = dict[str, dict[str, str]]
PICTURES = "{} pictures"
_PICTURES = tuple(map(PICTURES.format, ("train", "val")))
LAST, DAMAGED = "last", "damaged"
SHOWN = 5  # changed items


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
    digests: Digests
    keeping: Keeping = USUAL
    pinned: tuple[str, ...] = ()  # settings that the user named
    environment: dict[str, str] = field(default_factory=dict)  # such as which card
    skip_broken: int = 0  # entries of the data that may be left out
    left_out: tuple[str, ...] | None = None  # those that were, by their paths from `data`
    adapter: Path | None = None  # what the training starts from, before its first checkpoint

    def write(self, folder: Path) -> None:
        """Into the run folder."""
        folders = {"data": self.data, "cache": self.cache, "adapter": self.adapter}
        document = asdict(self) | {k: v and str(v.resolve()) for k, v in folders.items()}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_whole(folder / RECORD, text)

    @classmethod
    def read(cls, folder: Path) -> Started:
        """From a run folder. Raises CannotResume."""
        try:
            return TypeAdapter(cls).validate_json(read_regular(folder / RECORD))
        except ValidationError as error:
            what = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise CannotResume(
                f"{folder / RECORD}: damaged ({what})\n"
                "    hint: no run to go on with; begin a new one"
            ) from None
        except OSError as error:
            what = f"no run to go on with ({RECORD}: {reason(error)})"
            if not folder.is_dir():
                what = "is a file" if folder.exists() else "no such folder"
            raise CannotResume(
                f"{folder}: {what}\n    hint: --resume names the --output-dir of a lisa-train run"
            ) from None


def digests(
    train: Sequence[Item] | MixedSets,
    val: Sequence[Item],
    left_out: Collection[str] = (),
    contents: Contents | None = None,
) -> Digests:
    """What tells the data from others: by split, of each item; and of its pictures, by their paths.

    Of a mixture the number of its draws and what is broken and `left_out`, as mending it would
    change every draw; of its data sets the pictures' names and sizes in their order, and of its
    ReasonSeg the pictures themselves.
    """
    contents = contents or Contents()
    found: Digests = {"train": {}, "val": dict(map(_digest, val)), PICTURES.format("train"): {}}
    if isinstance(train, MixedSets):
        found["train"] = {"mixture": str(len(train))} | dict.fromkeys(sorted(left_out), "left out")
        sets = [one for kind in train.kinds for one in kind]
        own = [
            one.image_path
            for data in sets
            for one in data.pictures
            if isinstance(one, ReasoningPicture)
        ]
        found[PICTURES.format("train")] = dict(map(_set_digest, sets))
    else:
        found["train"] = dict(map(_digest, train))
        own = [item.image_path for item in train]
    found[PICTURES.format("train")] |= contents.of(own)
    found[PICTURES.format("val")] = contents.of([item.image_path for item in val])
    return found


def _digest(item: Item) -> tuple[str, str]:
    """As earlier versions have it: of the annotation's bytes and the picture's size."""
    annotation = hashlib.sha256(item.json_path.read_bytes())
    annotation.update(repr((item.explanations, item.image_path.stat().st_size)).encode())
    return item.name, annotation.hexdigest()[:16]


def _set_digest(data: DataSet) -> tuple[str, str]:
    told = hashlib.sha256()
    for one in data.pictures:
        told.update(repr((one.name, one.image_path.stat().st_size)).encode())
    return f"{data.name}: {len(data.pictures)} pictures", told.hexdigest()[:16]


def settled(before: Started, now: Digests, folder: Path) -> Started:
    """The run with what its data are. Raises CannotResume where it began with others.

    A run that died before these were written down has trained nothing that could contradict them.
    """
    trained = any(folder.glob(f"{LAST}*")) or (folder / "best").exists()
    if not before.digests and not trained:
        return replace(before, digests=now)
    check_data(before, now)
    return replace(before, digests=now | before.digests)  # an earlier version's know no pictures


def check_data(before: Started, now: Digests) -> None:
    """Raise CannotResume, item by item, if the data are others than the run began with.

    Of pictures a run of an earlier version knows the sizes alone, in its items' digests.
    """
    if not before.digests:
        raise CannotResume(f"{before.data}: {RECORD} does not say what data this run began with\n"
                           "    hint: begin a new run")  # fmt: skip
    lines = []
    for split, items in now.items():
        if split not in before.digests and split in _PICTURES:
            continue
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
            "    hint: put them back as they were; if they were moved, --data-dir DIR names their "
            "folder; or begin a new run"
        )


def check_plan(now: Plan, before: Plan) -> list[str]:
    """What has changed since the checkpoint's plan. Raises CannotResume for what must not."""
    old, new = (_flat(plan.model_dump(mode="json")) for plan in (before, now))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    lines = {name: f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed}
    refused = [line for name, line in lines.items() if name not in MAY_CHANGE_ON_RESUME]
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
    """The run's newest whole checkpoint, None where it has none yet. Raises CannotResume.

    Also one that a kill left under a hidden name: `tidy` then gives it its place.
    """
    damaged: list[str] = []
    for candidate in _newest_first(folder):
        wrong = checkpoint.damage(candidate)
        if not wrong:
            if damaged:
                tell(f"{'; '.join(damaged)}: going on from {candidate}; what is damaged is moved "
                     f"to {folder / DAMAGED}")  # fmt: skip
            return candidate
        if not candidate.name.startswith("."):  # a hidden one was just never finished
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


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints to go on from in a run folder."""
    earlier = [p for p in folder.glob(f"{LAST}-*") if p.name[len(LAST) + 1 :].isdigit()]
    earlier.sort(key=lambda path: int(path.name[len(LAST) + 1 :]))
    return checkpoint.by_age(folder / LAST, [folder / LAST, *earlier])


def tidy(folder: Path, good: Path, earlier: Sequence[Path]) -> None:
    """Have the next save find `good`, and `best`, in their places, as if no kill had been.

    Checkpoints newer than `good`, all damaged, go out of the way: else the next one saved would
    push the good one out, and keep a damaged one in its place.
    """
    for place in _newest_first(folder):
        if place == good:
            break
        if place.name.startswith("."):
            shutil.rmtree(place, ignore_errors=True)
        else:
            shutil.rmtree(folder / DAMAGED, ignore_errors=True)
            os.replace(place, folder / DAMAGED)
    checkpoint.settle(good, folder / LAST, earlier)
    checkpoint.mend(folder / "best")


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
