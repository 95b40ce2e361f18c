"""Going on with a run: what it began with, what has changed since, and being asked to stop."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint
from trainer.data.mixture import MixedSets
from trainer.data.reasonseg import Item

RECORD = "run.json"
LAST, PREVIOUS = "last", "previous"
SHOWN = 5  # changed items


class CannotResume(ValueError):
    """A run that cannot go on as it was; says what is in the way."""


@dataclass(frozen=True)
class Started:
    """Where a run's data and caches are, and what its data were."""

    data: Path
    cache: Path
    digests: dict[str, dict[str, str]]  # split -> item -> digest of annotation and picture

    def write(self, folder: Path) -> None:
        """Into the run folder."""
        document = {"data_dir": str(self.data.resolve()), "cache_dir": str(self.cache.resolve()),
                    "items": self.digests}  # fmt: skip
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Started:
        """From a run folder. Raises CannotResume."""
        try:
            found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            items = {split: dict(known.items()) for split, known in found["items"].items()}
            return cls(Path(found["data_dir"]), Path(found["cache_dir"]), items)
        except Exception as error:  # values of any other kind break it anywhere
            raise CannotResume(
                f"{folder}: no run to go on with ({error})\n"
                "    hint: --resume names the --output-dir of a lisa-train run"
            ) from None


def digests(train: Sequence[Item] | MixedSets, val: Sequence[Item]) -> dict[str, dict[str, str]]:
    """What tells the data from others: of each item its annotation's bytes and picture's size.

    Of a mixture the number of its draws and pictures stands for all.
    """
    if isinstance(train, MixedSets):
        return {"train": {"mixture": str(len(train))}, "val": dict(map(_digest, val))}
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
                shown = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
                lines.append(f"{split}: {len(names)} {what}: {shown}")
    if lines:
        listed = "\n    ".join(lines)
        raise CannotResume(
            f"{before.data}: not the data that this run began with\n    {listed}\n"
            "    hint: put them back, or begin a new run"
        )


def resumable(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The run's newest whole checkpoint, None where it has none yet. Raises CannotResume."""
    damaged: list[str] = []
    for candidate, wrong in checkpoint.newest([folder / LAST, folder / PREVIOUS]):
        if not wrong:
            if damaged:
                tell(f"{damaged[0]}: going on from {candidate}, the one before")
            return candidate
        damaged.append(f"{candidate}: {wrong}")
    if damaged:
        raise CannotResume("no checkpoint of this run is whole:\n    " + "\n    ".join(damaged))
    return None


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
