"""Writes the files of imported items, and splits them."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
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


@dataclass
class ItemFiles:
    """Writes items into the folders `train`, `val` and `test` in `root`.

    A picture with all its items is written where it will most likely belong. Only when all
    pictures are known, is it certain, and a few are moved.

    Pictures are ordered by a hash of seed and content, so their splits rarely change when others
    are added. Val takes the beginning and test the end, so that neither share affects the other
    while some pictures are left for train.

    Paths are text here: a large import writes a million files, and Path takes as long as writing.
    """

    root: Path
    val: float  # share of the pictures
    test: float
    seed: int
    written: dict[str, list[str]] = field(default_factory=dict)  # pictures' paths by content's hash
    _names: set[str] = field(default_factory=set)  # of items, as systems without case see them

    def __post_init__(self) -> None:
        for split in ("train", "val", *(["test"] if self.test else [])):
            (self.root / split).mkdir(parents=True)

    def write(
        self, drawing: Drawing, content: bytes, texts: dict[str, list[str]], is_sentence: bool
    ) -> None:
        """Write an item for each label, with the picture's content."""
        # Readers judge by content, so any picture may be called .jpg.
        suffix = ".png" if drawing.picture.suffix.lower() == ".png" else ".jpg"
        stem = _file_name_part(os.path.splitext(drawing.name)[0])
        sha = hashlib.sha256(content).hexdigest()
        folder = f"{self.root}{os.sep}{self._likely_split(sha)}{os.sep}"
        first: str | None = None
        for label, asked in texts.items():
            fields = {
                "text": asked,
                "is_sentence": is_sentence or all(map(_is_question, asked)),
                "picture": drawing.name,
                "label": label,
            }
            shapes = drawing.outlined[label]
            note = b'{"shapes":%s,%s\n' % (shapes.encode(), msgspec.json.encode(fields)[1:])
            path = folder + self._unused(f"{stem}-{_file_name_part(label)}")
            _write_new(f"{path}.json", note)
            picture = path + suffix
            _link_or_copy(first, content, picture)
            first = first or picture
            self.written.setdefault(sha, []).append(picture)

    def _unused(self, name: str) -> str:
        """The first unused one of `name`, `name-2`, …: different labels may look alike."""
        number, found = 1, name
        while (key := found.casefold()) in self._names:
            number += 1
            found = f"{name}-{number}"
        self._names.add(key)
        return found

    def _place(self, sha: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {sha}".encode()).digest()

    def _likely_split(self, sha: str) -> str:
        place = int.from_bytes(self._place(sha)[:6]) / 2**48
        return "val" if place < self.val else "test" if place >= 1 - self.test else "train"

    def settle(self) -> dict[str, int]:
        """Move the pictures that are not where they belong; returns the items of each split."""
        order = sorted(self.written, key=self._place)
        total = len(order)
        tested = min(max(1, round(self.test * total)), total - 2) if self.test else 0
        validated = min(max(1, round(self.val * total)), total - 1 - tested)
        splits = {
            "train": order[validated : total - tested],
            "val": order[:validated],
            "test": order[total - tested :],
        }
        counts = {}
        for split, contents in splits.items():
            pictures = [picture for content in contents for picture in self.written[content]]
            if pictures:
                counts[split] = len(pictures)
            folder = f"{self.root}{os.sep}{split}{os.sep}"
            for path in pictures:
                if not path.startswith(folder):
                    for file in (path, f"{os.path.splitext(path)[0]}.json"):
                        os.rename(file, folder + os.path.basename(file))
        return counts


def _is_question(text: str) -> bool:
    """Whether a label is a question by itself: what a mask's text in Sa2VA's files may be."""
    return text.endswith("?") and " " in text


@lru_cache(maxsize=1000)  # labels repeat
def _file_name_part(text: str) -> str:
    """Part of a file name: letters and digits of any script; hyphens replace all else."""
    plain = re.sub(r"\W+", "-", composed(text)).strip("-") or "x"
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore")


def _write_new(path: str, content: bytes) -> None:
    """Write a file that does not exist. Raises FileExistsError."""
    file = os.open(path, _NEW, 0o666)
    try:
        while content:  # a disk that fills up takes a part before it refuses
            content = content[os.write(file, content) :]
    finally:
        os.close(file)


def _link_or_copy(first: str | None, content: bytes, picture: str) -> None:
    """Make a hard link to `first`, if it is given and the system has links; else write a copy."""
    if first is not None:
        try:
            return os.link(first, picture)
        except OSError:
            pass
    _write_new(picture, content)
