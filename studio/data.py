"""The Data tab: checks data, draws sheets of it, and imports annotations."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from profiles.records import Frozen
from profiles.skipping import OPTION
from profiles.text import counted
from studio.fields import in_fields
from studio.places import Places, kind_of
from trainer.data import broken
from trainer.data.findings import grouped
from trainer.data.images import read_image
from trainer.data.importing.importer import import_annotations
from trainer.data.mixture import check as check_folder
from trainer.data.mixture import nothing_left
from trainer.data.preview import write_preview
from trainer.data.synthetic.dataset import write_dataset
from trainer.reporter import Progress

MOST_FINDINGS = 500
KINDS = ("negation",)  # what lisa-train synthesise writes, too
LARGEST_SIDE = 2400  # pixels of a picture that the page shows

Split = Literal["train", "val", "test"]


class Data(Frozen):
    """A data folder, by its place."""

    data: str = Field(max_length=4000)


class Sheet(Data):
    """Some items of a split to draw."""

    split: Split = "train"
    seed: int = Field(0, ge=0, le=2**32)
    count: int = Field(6, ge=1, le=24)


class Shown(Frozen):
    """A picture to show, and its longest side."""

    picture: str = Field(max_length=4000)
    most: int = Field(1200, ge=16, le=LARGEST_SIDE)


class Import(Frozen):
    """Annotations to import, by their places, into a new folder."""

    source: str = Field(max_length=4000)
    name: str = Field(max_length=80)
    questions: str | None = Field(None, max_length=4000)
    pictures: str | None = Field(None, max_length=4000)
    val: float = 0.1
    test: float = 0.0
    seed: int = Field(0, ge=0, le=2**32)
    skip_broken: int = Field(0, ge=0, le=1_000_000)
    encoding: str | None = Field(None, max_length=40)
    frame: str | None = Field(None, max_length=20)
    iscrowd: str | None = Field(None, max_length=20)


class Synthetic(Frozen):
    """A synthetic data set to make, to try the page with."""

    name: str = Field(max_length=80)
    train: int = Field(160, ge=1, le=10_000)
    val: int = Field(40, ge=1, le=10_000)
    seed: int = Field(0, ge=0, le=2**32)


def check(asked: Data, places: Places, progress: Progress) -> dict[str, Any]:
    """Counts by split and data set, and everything that is wrong; all pictures are decoded."""
    counts_of, others, findings = check_folder(places.folder(asked.data), progress)
    hints = broken.hint(findings, 0, nothing_left(counts_of))
    sets = [{"name": one.name, "pictures": len(one.pictures)} for one in others]
    return {
        "splits": {split: {name: str(value) for name, value in counts.items()}
                   for split, counts in counts_of.items()},
        "sets": sets,
        "count": len(findings),
        "findings": [in_fields(str(one)) for one in grouped(findings)[:MOST_FINDINGS]],
        # The page trains on sound data only.
        "hints": [one.replace(OPTION, f"in a terminal, lisa-train {OPTION}") for one in hints],
    }  # fmt: skip


def sheet(asked: Sheet, places: Places) -> bytes:
    """A sheet of items as training sees them, as PNG. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        write_preview(places.folder(asked.data), asked.split, asked.count, asked.seed, path)
        return path.read_bytes()


def picture(asked: Shown, places: Places) -> bytes:
    """A picture upright and no larger than it is shown, as PNG. Raises DataError, ValueError."""
    path = places.path(asked.picture)
    if kind_of(path) != "picture":
        raise ValueError(f"{path.name}: is no picture")
    return png(Image.fromarray(read_image(path)), asked.most)


def png(image: Image.Image, most: int = LARGEST_SIDE) -> bytes:
    """The picture as PNG, its longer side `most` pixels at most."""
    image.thumbnail((most, most))
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def synthesise(asked: Synthetic, places: Places) -> dict[str, Any]:
    """Write a synthetic data set into a new folder. Raises ValueError, FileExistsError."""
    target = places.new(asked.name)
    write_dataset(target, seed=asked.seed, train=asked.train, val=asked.val, test=0, kinds=KINDS)
    words = f"{asked.train} + {asked.val} questions of a kind that lisa-tiny has never seen"
    return {"data": places.place(target), "words": words, "notes": []}


def import_(asked: Import, places: Places, progress: Progress) -> dict[str, Any]:
    """Write annotations as ReasonSeg data into a new folder. Raises DataError, ValueError."""
    target = places.new(asked.name)
    questions, pictures = (None if place is None else places.around(place)
                           for place in (asked.questions, asked.pictures))  # fmt: skip
    done = import_annotations(
        places.around(asked.source), target, questions=questions, pictures=pictures,
        val=asked.val, test=asked.test,
        seed=asked.seed, skip_broken=asked.skip_broken, encoding=asked.encoding or None,
        frame=asked.frame or None, iscrowd=asked.iscrowd or None, progress=progress,
    )  # fmt: skip
    items = ", ".join(f"{split} {count}" for split, count in done.items.items())
    words = f"{items} items on {counted(done.pictures, 'picture')}"
    words += f"; {counted(done.left_out, 'picture')} without an item" if done.left_out else ""
    notes = [
        *map(in_fields, (*done.by_name, *done.assumed)),
        *([broken.left_out_line(done.broken)] if done.broken else []),
    ]
    return {"data": places.place(target), "words": words, "notes": notes}
