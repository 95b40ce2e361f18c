"""Digests of a run's data, so that --resume continues only with the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from profiles.text import some
from trainer.data.contents import Contents
from trainer.data.formats.reasonseg import Item, ReasoningPicture
from trainer.data.mixture import MixedSets
from trainer.data.pictures import DataSet
from trainer.run.folder import LAST, RECORD
from trainer.run.started import CannotResume, Digests, Started

PICTURES = "{} pictures"
ANNOTATIONS = "train annotations"
MANY = 1000  # files of a data set: one digest stands for more
_LATER = (*map(PICTURES.format, ("train", "val")), ANNOTATIONS)  # not recorded by older versions


def digests(
    train: Sequence[Item] | MixedSets,
    val: Sequence[Item],
    left_out: Collection[str] = (),
    contents: Contents | None = None,
) -> Digests:
    """What identifies the data: a digest of each item by split, and of each picture by path.

    For a mixture: the number of its draws; the broken entries that were left out, since repairing
    one would change every draw; for each data set the names and sizes of its pictures, in order,
    and digests of its annotation files; and digests of ReasonSeg's items and pictures.
    """
    contents = contents or Contents()
    found: Digests = {"train": {}, "val": dict(map(_digest, val)), PICTURES.format("train"): {}}
    if isinstance(train, MixedSets):
        found["train"] = {"mixture": str(len(train))} | dict.fromkeys(sorted(left_out), "left out")
        sets = [one for kind in train.kinds for one in kind]
        items = [
            item
            for data in sets
            for one in data.pictures
            if isinstance(one, ReasoningPicture)
            for item in one.items
        ]
        found[PICTURES.format("train")] = dict(map(_set_digest, sets))
        found[ANNOTATIONS] = dict(map(_digest, items))
        for data in sets:
            found[ANNOTATIONS] |= _annotations(data, contents)
    else:
        items = list(train)
        found["train"] = dict(map(_digest, items))
    own = [item.image_path for item in items]
    found[PICTURES.format("train")] |= contents.of(own)
    found[PICTURES.format("val")] = contents.of([item.image_path for item in val])
    return found


def trained_on(known: Digests, contents: Iterable[str]) -> int:
    """How many different pictures of these contents are among those that a run is trained on.

    Of a mixture ReasonSeg's alone are known: other data sets' pictures are not read for digests.
    """
    return len(set(known.get(PICTURES.format("train"), {}).values()) & set(contents))


def _digest(item: Item) -> tuple[str, str]:
    """The digest of the annotation's bytes and the picture's size, as in earlier versions."""
    annotation = hashlib.sha256(item.json_path.read_bytes())
    annotation.update(repr((item.explanations, item.image_path.stat().st_size)).encode())
    return item.name, annotation.hexdigest()[:16]


def _set_digest(data: DataSet) -> tuple[str, str]:
    digest = hashlib.sha256()
    for one in data.pictures:
        digest.update(repr((one.name, one.image_path.stat().st_size)).encode())
    return f"{data.name}: {len(data.pictures)} pictures", digest.hexdigest()[:16]


def _annotations(data: DataSet, contents: Contents) -> dict[str, str]:
    """Digests of the files that a data set's questions and masks are read from."""
    each = contents.of([path for path in data.annotations if path.is_file()])
    if len(each) <= MANY:
        return each
    whole = hashlib.sha256(repr(sorted(each.items())).encode())
    return {f"{data.name}: {len(each)} files": whole.hexdigest()[:16]}


def checked_start(before: Started, now: Digests, folder: Path) -> Started:
    """The run's start with the digests of its data. Raises CannotResume if the data have changed.

    A run that ended before it recorded any digests has trained nothing, so any data will do.
    """
    trained = any(folder.glob(f"{LAST}*")) or (folder / "best").exists()
    if not before.digests and not trained:
        return replace(before, digests=now)
    check_data(before, now)
    return replace(before, digests=now | before.digests)  # earlier versions recorded no pictures


def check_data(before: Started, now: Digests) -> None:
    """Raise CannotResume, item by item, if the data have changed since the run began.

    Earlier versions recorded only the sizes of pictures, within the digests of items, and of a
    mixture no annotations.
    """
    if not before.digests:
        raise CannotResume(f"{before.data}: {RECORD} does not say what data this run began with\n"
                           "    hint: begin a new run")  # fmt: skip
    lines = []
    for split, items in now.items():
        if split not in before.digests and split in _LATER:
            continue
        known = before.digests.get(split, {})
        changed = [name for name in items if known.get(name) != items[name]]
        gone = [name for name in known if name not in items]
        for what, names in (("changed or new", changed), ("gone", gone)):
            if names:
                lines.append(f"{split}: {len(names)} {what}: {some(names)}")
    if lines:
        listed = "\n    ".join(lines)
        raise CannotResume(
            f"{before.data}: not the data that this run began with\n    {listed}\n"
            "    hint: put them back as they were; if they were moved, --data-dir DIR names their "
            "folder; or begin a new run"
        )
