"""Time to read and to import data: made-up annotations of the published data sets' sizes.

    python benchmarks/reading.py

Writes benchmarks/reading.jsonl, from which `python tools/write_docs.py measured` takes what
docs/data.md and docs/own-data.md quote. One core, and its own seconds: others may be busy on it. A
row's pictures are one file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.data import mixture  # noqa: E402
from trainer.data.contents import Contents  # noqa: E402
from trainer.data.formats import sem_seg, vqa  # noqa: E402
from trainer.data.importing.importer import import_annotations  # noqa: E402
from trainer.data.pictures import Scanned  # noqa: E402

ROWS_FILE = ROOT / "benchmarks" / "reading.jsonl"
WIDTH, HEIGHT, POLYGONS = 640, 480, 7  # of a picture
RNG = np.random.default_rng(0)


def polygon() -> list[float]:
    """A ragged outline of 30 points."""
    turn, centre = (
        np.linspace(0, 2 * np.pi, 30, endpoint=False),
        RNG.uniform((100, 100), (540, 380)),
    )
    radius = RNG.uniform(20, 90) * RNG.uniform(0.9, 1.1, 30)
    points = centre + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    return [round(float(x), 1) for x in points.ravel()]


def write_coco(path: Path, pictures: Path, count: int, *, alike: bool) -> None:
    """COCO's format: `count` pictures of POLYGONS annotations each, in 80 categories."""
    names = [f"{number:06}.jpg" for number in range(count)]
    write_pictures(pictures, names, alike=alike)
    size = {"width": WIDTH, "height": HEIGHT}
    numbers = range(count * POLYGONS)
    categories = RNG.integers(80, size=len(numbers)).tolist()
    document = {
        "images": [{"id": n, "file_name": name, **size} for n, name in enumerate(names)],
        "categories": [{"id": n, "name": f"thing {n}"} for n in range(80)],
        "annotations": [
            {"id": n, "image_id": n // POLYGONS, "category_id": categories[n],
             "segmentation": [polygon()]} for n in numbers
        ],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_pictures(folder: Path, names: Iterable[str], *, alike: bool) -> None:
    """Pictures of noise: each a file of its own, or all links to one if `alike`."""
    folder.mkdir(parents=True, exist_ok=True)
    first: Path | None = None
    for name in names:
        if alike and first is not None:
            os.link(first, folder / name)
            continue
        first = folder / name
        noise = Image.fromarray(RNG.integers(256, size=(30, 40, 3), dtype=np.uint8))
        noise.resize((WIDTH, HEIGHT)).save(first)


def write_dialogues(root: Path, count: int) -> None:
    """LLaVA-Instruct's format: three turns about each picture."""
    names = [f"{number:06}.jpg" for number in range(count)]
    write_pictures(root / "coco" / "train2017", names, alike=True)
    said = [{"from": ("human", "gpt")[n % 2], "value": "some words that are said " * 4}
            for n in range(6)]  # fmt: skip
    (root / "vqa").mkdir()
    dialogues = [{"id": name, "image": name, "conversations": said} for name in names]
    (root / "vqa" / "talks.json").write_text(json.dumps(dialogues))


def write_numbered(folder: Path, count: int) -> None:
    """ADE20K's layout, each picture with some of 150 classes."""
    stems = [f"{number:06}" for number in range(count)]
    write_pictures(folder / "images" / "training", [f"{stem}.jpg" for stem in stems], alike=True)
    labels = folder / "annotations" / "training"
    labels.mkdir(parents=True)
    for stem in stems:
        blocks = RNG.integers(151, size=(6, 8), dtype=np.uint8)
        Image.fromarray(blocks.repeat(80, 0).repeat(80, 1)).save(labels / f"{stem}.png")
    lines = ["Idx\tName", *(f"{number}\tthing {number}" for number in range(1, 151))]
    (folder / "objectInfo150.txt").write_text("\n".join(lines))


def write_items(folder: Path, count: int) -> None:
    """ReasonSeg's format: pictures of 640 x 480, each with a question and a polygon."""
    stems = [f"{number:06}" for number in range(count)]
    write_pictures(folder, [f"{stem}.jpg" for stem in stems], alike=True)
    for stem in stems:
        points = np.reshape(polygon(), (-1, 2)).tolist()
        note = {"shapes": [{"label": "target", "points": points}], "text": ["a thing"],
                "is_sentence": False}  # fmt: skip
        (folder / f"{stem}.json").write_text(json.dumps(note))


def check(root: Path) -> None:
    """What --check-data does. Raises unless all is sound."""
    counts, _, findings = mixture.check(root)
    assert counts["train"]["items"] and not findings, findings[:3]


def sound(scanned: Scanned) -> None:
    """Raises unless all was read."""
    assert scanned[0] and not scanned[1], scanned[1][:3]


def row(what: str, count: int, read: Callable[[], Any]) -> dict[str, Any]:
    """What was read, how much, and the processor seconds."""
    started = time.process_time()
    read()
    found = {"what": what, "count": count, "seconds": round(time.process_time() - started, 2)}
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Write each kind of data aside, and read it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_coco(root / "own.json", root / "own", 1000, alike=False)
        found.append(row("imported pictures", 1000, lambda: import_annotations(
            root / "own.json", root / "imported", pictures=root / "own")))  # fmt: skip
        write_items(root / "a" / "ReasonSeg" / "train", 5000)
        found.append(row("checked items", 5000, lambda: check(root / "a")))
        pictures = sorted((root / "own").iterdir())
        for what in ("digested pictures", "digested pictures again"):
            found.append(row(what, 1000, lambda: Contents(root / "own", root / "cache").of(
                pictures)))  # fmt: skip
        write_numbered(root / "b" / "ade20k", 1000)
        found.append(row("numbered pictures", 1000, lambda: sound(sem_seg.read(root / "b"))))
        write_dialogues(root / "c", 50_000)
        found.append(row("dialogues", 50_000, lambda: sound(vqa.read(root / "c"))))
        things = root / "d" / "sem_seg" / "things"
        write_coco(things / "annotations.json", things / "images", 20_000, alike=True)
        found.append(row("outlined pictures", 20_000, lambda: sound(sem_seg.read(root / "d"))))
    ROWS_FILE.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")


if __name__ == "__main__":
    main()
