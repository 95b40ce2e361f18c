"""Writes the files of imported items, and splits them."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

import msgspec

from trainer.data.importing.outlines import Drawing
from trainer.data.importing.questions_file import composed

FOLDER = "ReasonSeg"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NAME_BYTES = (
    100  # of the picture's and of the label's part of a file name; systems allow 255 in all
)


def write_items(
    folder: Path, drawing: Drawing, content: bytes, texts: dict[str, list[str]], is_sentence: bool
) -> list[str]:
    """Write an item for each label, with the picture's content; returns the pictures' paths.

    Paths are text here: a large import writes a million files, and Path takes as long as writing.
    """
    # Readers judge by content, so any picture may be called .jpg.
    suffix = ".png" if drawing.picture.suffix.lower() == ".png" else ".jpg"
    stem = _file_name_part(os.path.splitext(drawing.name)[0])
    written: list[str] = []
    for label, asked in texts.items():
        fields = {
            "text": asked,
            "is_sentence": is_sentence,
            "picture": drawing.name,
            "label": label,
        }
        shapes = drawing.outlined[label]
        note = b'{"shapes": %s, %s\n' % (shapes.encode(), msgspec.json.encode(fields)[1:])
        name = _write_new(f"{folder}{os.sep}{stem}-{_file_name_part(label)}", note)
        picture = name + suffix
        _link_or_copy(written[0] if written else None, content, picture)
        written.append(picture)
    return written


@lru_cache(maxsize=1000)  # labels repeat
def _file_name_part(text: str) -> str:
    """Part of a file name: letters and digits of any script; hyphens replace all else."""
    plain = re.sub(r"\W+", "-", composed(text)).strip("-") or "x"
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore")


def _write_new(name: str, note: bytes) -> str:
    """Write an item's annotation; returns its path without the suffix.

    The path is the first unused one of `name`, `name-2`, …: different labels may look alike.
    """
    number, path = 1, name
    while True:
        try:
            file = os.open(f"{path}.json", _NEW, 0o666)
            break
        except FileExistsError:
            number += 1
            path = f"{name}-{number}"
    try:
        os.write(file, note)
    finally:
        os.close(file)
    return path


def _link_or_copy(first: str | None, content: bytes, picture: str) -> None:
    """Make a hard link to `first`, if it is given and the system has links; else write a copy."""
    if first is not None:
        try:
            return os.link(first, picture)
        except OSError:
            pass
    with open(picture, "wb") as file:
        file.write(content)


def split_items(
    folder: Path, written: dict[str, list[str]], val: float, test: float, seed: int
) -> dict[str, int]:
    """Move a share of the pictures from train to val and test; returns the items of each split.

    Pictures are ordered by a hash of seed and content, so their splits rarely change when others
    are added. Val takes the beginning and test the end, so that neither share affects the other
    while some pictures are left for train.
    """
    order = sorted(
        written, key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest()
    )
    total = len(order)
    tested = min(max(1, round(test * total)), total - 2) if test else 0
    validated = min(max(1, round(val * total)), total - 1 - tested)
    chosen = {"val": order[:validated], "test": order[total - tested :]}
    counts = {"train": sum(map(len, written.values()))}
    for split, contents in chosen.items():
        moved = [picture for content in contents for picture in written[content]]
        if moved:
            (folder.parent / split).mkdir()
            counts |= {split: len(moved), "train": counts["train"] - len(moved)}
        for path in moved:
            for file in (path, f"{os.path.splitext(path)[0]}.json"):
                os.rename(file, f"{folder.parent}{os.sep}{split}{os.sep}{os.path.basename(file)}")
    return counts
