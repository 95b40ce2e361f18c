"""Time that `lisa-train import` takes for a large COCO file, and its longest silence.

    python benchmarks/large_import.py [ANNOTATIONS] [--keep]

Ten outlines of 30 points on each picture of 640 x 480, in 80 categories. `--keep` adds the row to
benchmarks/large_import.jsonl, from which `python tools/write_docs.py measured` takes what
docs/own-data.md quotes. Processor seconds are those of all of the import's processes; the load is
that of the minute before, when others may have been at work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "large_import.jsonl"
WIDTH, HEIGHT, EACH, POINTS, CATEGORIES = 640, 480, 10, 30, 80
RNG = np.random.default_rng(0)


def annotations(count: int) -> Iterator[str]:
    """COCO's entries in JSON: ragged outlines, with the fields that COCO has."""
    turn = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    for number in range(count):
        radius = RNG.uniform(20, 90) * RNG.uniform(0.9, 1.1, POINTS)
        points = (RNG.uniform((100, 100), (540, 380)) + radius[:, None] * circle).round(2)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        box, category = [left, top, right - left, bottom - top], int(RNG.integers(CATEGORIES))
        yield json.dumps({
            "segmentation": [points.ravel().tolist()], "area": round(3 * radius.mean() ** 2, 2),
            "iscrowd": 0, "image_id": number // EACH, "bbox": box, "category_id": category,
            "id": number,
        })  # fmt: skip


def write_pictures(folder: Path, count: int) -> list[dict[str, Any]]:
    """Pictures of noise, each different by a comment; COCO's entries of them."""
    folder.mkdir()
    encoded = []
    for _ in range(100):
        file = BytesIO()
        noise = Image.fromarray(RNG.integers(256, size=(30, 40, 3), dtype=np.uint8))
        noise.resize((WIDTH, HEIGHT)).save(file, "JPEG")
        encoded.append(file.getvalue())
    for number in range(count):
        start, rest = encoded[number % 100][:2], encoded[number % 100][2:]
        comment = b"\xff\xfe\x00\x0a%08d" % number
        (folder / f"{number:08}.jpg").write_bytes(start + comment + rest)
    return [{"id": number, "file_name": f"{number:08}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(count)]  # fmt: skip


def write_coco(path: Path, count: int) -> None:
    """The file, and its pictures in `images` beside it."""
    images = write_pictures(path.parent / "images", -(-count // EACH))
    categories = [{"id": number, "name": f"thing {number}"} for number in range(CATEGORIES)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for number, entry in enumerate(annotations(count)):
            file.write(f"{', ' if number else ''}{entry}")
        file.write(f'], "categories": {json.dumps(categories)}}}')


def measured(path: Path, target: Path) -> dict[str, Any]:
    """Import the file in a process of its own."""
    command = [sys.executable, "-m", "trainer.cli", "import", str(path), str(target)]
    load, started = os.getloadavg()[0], time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    silent, last = 0.0, started
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            now = time.perf_counter()
            silent, last = max(silent, now - last), now
            print(line, end="", file=sys.stderr, flush=True)
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise SystemExit(f"the import ended with {child.returncode}")
    return {
        "seconds": round(ended - started, 1),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
        "peak_bytes": after.ru_maxrss * 1024,  # of the largest of its processes
        "silent_seconds": round(max(silent, ended - last), 1),
        "load": round(load, 2),
    }


def main() -> None:
    """Write the data aside, import them, print the row and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("annotations", nargs="?", type=int, default=500_000)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "instances.json"
        write_coco(path, asked.annotations)
        os.sync()
        row = {
            "annotations": asked.annotations,
            "file_bytes": path.stat().st_size,
            **measured(path, Path(name) / "data"),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        }
    print(json.dumps(row))
    if asked.keep:
        with ROWS_FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
