"""Chooses the reader for a folder or file of annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from profiles.splits import SPLITS
from profiles.text import argument
from trainer.data.findings import Finding, Report
from trainer.data.formats.coco_document import parse_coco
from trainer.data.images import PICTURE_SUFFIXES
from trainer.data.importing.coco_outlines import read_drawings
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.foreign import READ, is_foreign
from trainer.data.importing.labelme import read_labelme
from trainer.data.importing.outlines import Drawing, json_files, name_below, visible
from trainer.data.json_fields import LARGEST_FILE, load_json
from trainer.data.picture_paths import PictureSearch, search_folders
from trainer.reporter import Progress

_OTHERS = (".xml", ".csv", ".zip", ".yaml", ".yml", ".txt")  # may be of tools that are not read


def drawings(
    source: Path,
    search: PictureSearch,
    findings: list[Finding],
    conventions: Conventions,
    progress: Progress | None,
) -> Iterator[Drawing]:
    """The drawings of a COCO file, of a folder with one, or else of a LabelMe folder."""
    coco = _coco_file(source)
    if coco is not None:
        search.folders = list(dict.fromkeys([*search.folders, *search_folders(coco, None)]))
        return read_drawings(coco, search, findings, conventions, progress)
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder of LabelMe's files, nor a COCO file")
    files = json_files(source)
    first = next((path for path in files if path.parent.name in SPLITS), None)
    if first is not None and _is_reason_seg(first):
        raise ValueError(
            f"{source}: holds ReasonSeg data already ({first.name}); allowed: {READ}\n"
            f"    hint: lisa-train --check-data {argument(first.parent.parent)} takes it as it is"
        )
    if not files:
        others = [path for path in sorted(source.rglob("*")) if path.suffix in _OTHERS]
        if not any(is_foreign(Report(path, findings)) for path in others):
            fix = "name the folder that has them, or export them so"
            Report(source, findings).add("annotations", "no JSON file", READ, fix)
    found = read_labelme(source, search, findings, conventions, progress)
    return _noting_unread(found, source, conventions)


def _noting_unread(
    found: Iterator[Drawing], source: Path, conventions: Conventions
) -> Iterator[Drawing]:
    """The drawings of a LabelMe folder; notes about what lies there and is not among them."""
    read = set[Path]()
    for drawing in found:
        read.add(Path(os.path.abspath(drawing.picture)))
        yield drawing
    if read:
        _note_unread(source, read, conventions)


def _note_unread(source: Path, read: set[Path], conventions: Conventions) -> None:
    """Leave out pictures without annotations that lie in a LabelMe folder; note XML there."""
    folder = Path(os.path.abspath(source))
    foreign = list[Finding]()
    for path in visible(folder):
        if path.suffix.lower() in PICTURE_SUFFIXES and path not in read:
            conventions.leave_out(name_below(path, folder))
        elif path.suffix.lower() == ".xml":
            is_foreign(Report(path, foreign))
    if foreign:
        conventions.notes.append(f"not read: {foreign[0]}")


def _coco_file(source: Path) -> Path | None:
    """The file itself, or the only JSON of a folder if it is COCO's or another tool's list."""
    if source.is_file():
        return source
    files = json_files(source)
    if len(files) == 1:
        notes = load_json(Report(files[0]), object, "an object or a list", parse=parse_coco)
        if isinstance(notes, list) or (isinstance(notes, dict) and "annotations" in notes):
            return files[0]
    return None


def _is_reason_seg(path: Path) -> bool:
    """Whether a file has the keys of a ReasonSeg item, without the picture's name of LabelMe."""
    notes = load_json(Report(path), object, "an object", LARGEST_FILE)
    return isinstance(notes, dict) and (
        {"shapes", "text", "is_sentence"} <= notes.keys() and "imagePath" not in notes
    )
