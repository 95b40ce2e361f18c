"""Chooses the reader for a folder or file of annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from profiles.splits import SPLITS
from profiles.text import argument, counted
from trainer.data.findings import Finding, Report
from trainer.data.formats.coco_document import parse_coco
from trainer.data.images import PICTURE_SUFFIXES
from trainer.data.importing.coco_outlines import read_drawings
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.foreign import MAY_BE_FOREIGN, READ, is_foreign, is_other
from trainer.data.importing.labelme import read_labelme
from trainer.data.importing.outlines import Drawing, json_files, name_below, visible
from trainer.data.importing.splits import split_of_file, split_of_folders
from trainer.data.importing.yolo_folder import YoloFolder, yolo_folder
from trainer.data.json_fields import LARGEST_FILE, load_json
from trainer.data.picture_paths import PictureSearch, search_folders
from trainer.reporter import Progress


@dataclass(frozen=True)
class Source:
    """A file or folder to import, and where what is found there goes."""

    path: Path
    search: PictureSearch
    findings: list[Finding]
    conventions: Conventions
    progress: Progress | None = None

    def drawings(self) -> Iterator[Drawing]:
        """The drawings of a COCO file, of a folder with one or one a split, or of LabelMe's.

        Each with its split, if the source says one.
        """
        if (folder := yolo_folder(self.path)) is not None:
            yield from self._of_yolo(folder)
            return
        if by_split := self._by_split():
            yield from self._of_splits(by_split)
            return
        for drawing in self._of_one():
            split = _split_of(drawing.notes, self.path, os.path.dirname(drawing.name))
            yield replace(drawing, split=split)

    def _by_split(self) -> dict[str, Path]:
        """The COCO files of a folder that has one for each split, as Roboflow's and CVAT's have."""
        files = json_files(self.path) if self.path.is_dir() else []
        found = {split_of_file(path.relative_to(self.path)): path for path in files}
        alike = len(found) == len(files) > 1 and any(map(_is_coco, files))
        return {split: found[split] for split in SPLITS if alike and None not in found
                and split in found}  # fmt: skip

    def _of_splits(self, files: dict[str, Path]) -> Iterator[Drawing]:
        """Names start from the folder of all: pictures of two splits may be called alike."""
        for split, path in files.items():
            search = PictureSearch(search_folders(path, None, self.search.folders))
            found = read_drawings(path, search, self.findings, self.conventions, self.progress,
                                  root=self.path)  # fmt: skip
            for drawing in found:
                yield replace(drawing, split=split)
            self.search.missing += search.missing
            self.search.respelled |= search.respelled

    def _of_yolo(self, folder: YoloFolder) -> Iterator[Drawing]:
        path = self.path if self.path.is_dir() else self.path.parent
        for drawing in read_drawings(path, self.search, self.findings, self.conventions,
                                     self.progress, folder.root, folder):  # fmt: skip
            yield replace(drawing, split=folder.split_of(drawing.picture))

    def _of_one(self) -> Iterator[Drawing]:
        coco = self._coco_file()
        if coco is not None:
            folders = [*self.search.folders, *search_folders(coco, None)]
            self.search.folders = list(dict.fromkeys(folders))
            return read_drawings(coco, self.search, self.findings, self.conventions, self.progress)
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such file or folder\n    hint: name {READ}")
        files = json_files(self.path)
        first = next((path for path in files if path.parent.name in SPLITS), None)
        if first is not None and _is_reason_seg(first):
            folder = first.parent.parent
            raise ValueError(
                f"{self.path}: holds ReasonSeg data already ({first.name}); allowed: {READ}\n"
                f"    hint: lisa-train --check-data {argument(folder)} takes it as it is"
            )
        if not files:
            self._refuse_others()
        return self._of_labelme()

    def _coco_file(self) -> Path | None:
        """The file itself, or the only JSON of a folder if it is COCO's or another tool's list."""
        if self.path.is_file():
            return self.path
        files = json_files(self.path)
        return files[0] if len(files) == 1 and _is_coco(files[0]) else None

    def _refuse_others(self) -> None:
        """A finding about a folder without JSON, by what else lies there."""
        there = visible(self.path)
        others = [path for path in there if path.suffix.lower() in MAY_BE_FOREIGN]
        if any(is_foreign(Report(path, self.findings)) for path in others):
            return
        others = [path for path in others if path.suffix.lower() != ".txt"]  # of a word or two
        if not any(is_other(Report(path, self.findings)) for path in others):
            pictures = sum(path.suffix.lower() in PICTURE_SUFFIXES for path in there)
            fix = "name the folder that has them, or export them so"
            fix += "; of painted masks: docs/own-data.md#painted-masks" if pictures else ""
            got = f"{counted(pictures, 'picture')} and no such file"
            Report(self.path, self.findings).add("annotations", got, READ, fix)

    def _of_labelme(self) -> Iterator[Drawing]:
        """The drawings of a LabelMe folder; what lies there and is not among them is noted."""
        read = set[Path]()
        found = read_labelme(self.path, self.search, self.findings, self.conventions, self.progress)
        for drawing in found:
            read.add(Path(os.path.abspath(drawing.picture)))
            yield drawing
        if read:
            self._note_unread(read)

    def _note_unread(self, read: set[Path]) -> None:
        """Leave out pictures without annotations that lie in a LabelMe folder; note XML there."""
        folder = Path(os.path.abspath(self.path))
        foreign = list[Finding]()
        for path in visible(folder):
            if path.suffix.lower() in PICTURE_SUFFIXES and path not in read:
                self.conventions.leave_out(name_below(path, folder))
            elif path.suffix.lower() in MAY_BE_FOREIGN:
                is_foreign(Report(path, foreign))
        if foreign:
            self.conventions.notes.append(f"not read: {foreign[0]}")


@lru_cache(maxsize=1000)  # most pictures share it
def _split_of(notes: Path, source: Path, folder: str) -> str | None:
    """By the folder of an annotation in the source, or else of its picture's name."""
    below = Path(os.path.relpath(notes, source))
    return split_of_folders(below) or split_of_folders(Path(folder, "picture"))


def _is_coco(path: Path) -> bool:
    """Whether a file is COCO's, or another tool's list of pictures."""
    notes = load_json(Report(path), object, "an object or a list", parse=parse_coco)
    return isinstance(notes, list) or (isinstance(notes, dict) and "annotations" in notes)


def _is_reason_seg(path: Path) -> bool:
    """Whether a file has the keys of a ReasonSeg item, without the picture's name of LabelMe."""
    notes = load_json(Report(path), object, "an object", LARGEST_FILE)
    return isinstance(notes, dict) and (
        {"shapes", "text", "is_sentence"} <= notes.keys() and "imagePath" not in notes
    )
