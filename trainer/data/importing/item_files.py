"""Writes the files of imported items, and splits them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from profiles.splits import SPLITS
from trainer.data.importing.labels import composed
from trainer.data.importing.outlines import Drawing
from trainer.data.importing.splits import Known, Splits

FOLDER = "ReasonSeg"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NAME_BYTES = (
    100  # of the picture's and of the label's part of a file name; systems allow 255 in all
)


@dataclass
class ItemFiles:
    """Writes items into the folders `train`, `val` and `test` in `root`.

    A picture and its items are written into the split that they most likely belong to. This is
    certain only when all pictures are known; then a few are moved.

    Paths are text here: a large import writes a million files, and Path takes as long as writing.
    """

    root: Path
    splits: Splits
    known: list[Known] = field(default_factory=list)  # the pictures written
    _paths: list[list[str]] = field(default_factory=list)  # of each
    _names: set[str] = field(default_factory=set)  # of items, as systems without case see them

    def __post_init__(self) -> None:
        for split in self.needed:
            (self.root / split).mkdir(parents=True)

    def write(
        self, drawing: Drawing, content: bytes, texts: dict[str, list[str]], is_sentence: bool
    ) -> None:
        """Write an item for each label, with the picture's content."""
        # Readers judge by content, so any picture may be called .jpg.
        suffix = ".png" if drawing.picture.suffix.lower() == ".png" else ".jpg"
        stem = _file_name_part(os.path.splitext(drawing.name)[0])
        known = Known(hashlib.sha256(content).hexdigest(), drawing.name, drawing.split)
        folder = self._folder(self.splits.likely(known)) + os.sep
        first: str | None = None
        paths = list[str]()
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
            paths.append(picture)
        self.known.append(known)
        self._paths.append(paths)

    def _folder(self, split: str) -> str:
        folder = f"{self.root}{os.sep}{split}"
        if split == "test":
            os.makedirs(folder, exist_ok=True)
        return folder

    def _unused(self, name: str) -> str:
        """The first unused one of `name`, `name-2`, …: different labels may look alike."""
        number, found = 1, name
        while (key := found.casefold()) in self._names:
            number += 1
            found = f"{name}-{number}"
        self._names.add(key)
        return found

    @property
    def needed(self) -> list[str]:
        """The splits that must have a picture."""
        return ["train", "val", *(["test"] if self.splits.test else [])]

    def lacks(self) -> bool:
        """Whether no picture is left for a split."""
        return not set(self.splits.assign(self.known)).issuperset(self.needed)

    def settle(self) -> dict[str, int]:
        """Move the pictures that are not where they belong; returns the items of each split."""
        counts = Counter[str]()
        for split, paths in zip(self.splits.assign(self.known), self._paths, strict=True):
            folder = "" if split is None else self._folder(split) + os.sep
            misplaced = [path for path in paths if not folder or not path.startswith(folder)]
            for path in misplaced:
                for file in (path, f"{os.path.splitext(path)[0]}.json"):
                    if split is None:
                        os.remove(file)
                    else:
                        os.rename(file, folder + os.path.basename(file))
            if split is not None:
                counts[split] += len(paths)
        return {split: counts[split] for split in SPLITS if counts[split]}


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
