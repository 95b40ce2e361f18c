"""The user's annotations from LabelMe, COCO or Label Studio, written as a ReasonSeg data set.

Each label of a picture becomes one item. Its text is what a questions' file asks about it, or
without such a file the label itself, as a phrase.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TypeAlias

from profiles.files import read_regular
from profiles.splits import SPLITS
from profiles.text import argument
from trainer.atomic_folder import placed
from trainer.data import broken
from trainer.data.findings import Finding, Report
from trainer.data.formats.reasonseg import Progress
from trainer.data.importing.coco_outlines import read_drawings
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.foreign import is_foreign
from trainer.data.importing.labelme import read_labelme
from trainer.data.importing.outlines import Drawing, json_files
from trainer.data.json_fields import LARGEST_FILE, load_json, read_sentence
from trainer.data.picture_paths import PictureSearch, search_folders
from trainer.prompts import PromptError, question_for

FOLDER = "ReasonSeg"
READ = "LabelMe's files, COCO's instances, or Label Studio's JSON"
COLUMNS = ("picture", "label", "question")
_NAME_BYTES = 100  # of a picture's and of a label's part in a file name; systems allow 255 in all


@dataclass
class _Question:
    """What a questions' file asks about one label of one picture, and in which line first."""

    line: int
    texts: list[str] = field(default_factory=list)


_Questions: TypeAlias = dict[tuple[str, str], _Question]  # by picture, and label as _alike has it


@dataclass(frozen=True)
class Imported:
    """What was written: items per split, and how many pictures have one, and have none.

    `broken` is what was wrong with the entries that were skipped, as asked.
    """

    items: dict[str, int]
    pictures: int
    left_out: int
    broken: tuple[Finding, ...] = ()
    assumed: tuple[str, ...] = ()  # how a tool's own conventions were understood, and how often


def import_annotations(
    source: Path,
    target: Path,
    *,
    questions: Path | None = None,
    pictures: Path | None = None,
    val: float = 0.1,
    test: float = 0.0,
    seed: int = 0,
    skip_broken: int = 0,
    encoding: str | None = None,
    frame: str | None = None,
    iscrowd: str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Write `target/ReasonSeg/{train,val,test}` from files of LabelMe, COCO or Label Studio.

    `pictures` is where the pictures are, if not beside the annotations. At most `skip_broken`
    broken entries are left out, and listed in `target/skipped.txt`; by default none is. A share
    `val` of the pictures, one at least, goes to val with all their items, and unless `test` is 0
    a share to test alike; copies of a picture stay together. Each picture is copied once, so that
    later edits of the source cannot part it from its polygons, and hard-linked for its further
    labels.

    The target appears when it is complete. Raises DataError with all findings, FileExistsError if
    the target is not empty, ValueError for unusable arguments.
    """
    if frame not in (None, "stored", "upright"):
        raise ValueError(f"--frame: got {frame!r}; allowed: stored, upright")
    if iscrowd not in (None, "object", "crowd"):
        raise ValueError(f"--iscrowd: got {iscrowd!r}; allowed: object, crowd")
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            allowed = "a name that Python knows, such as gbk, shift_jis or cp1252"
            raise ValueError(f"--encoding: got {encoding!r}; allowed: {allowed}") from None
    conventions = Conventions(encoding, frame, iscrowd)
    if not 0 < val < 1:
        raise ValueError(f"--val: got {val}; allowed: a share between 0 and 1")
    if not 0 <= test < 1 - val:
        raise ValueError(f"--test: got {test}; allowed: 0, or a share that leaves some to train on")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target}: is in {source}; name a folder outside of what is read")
    findings: list[Finding] = []
    with placed(target) as draft:
        folder = draft / FOLDER / "train"
        folder.mkdir(parents=True)
        asked = None if questions is None else _read_questions(questions, findings, conventions)
        written: dict[str, list[Path]] = {}  # by a picture's content, its items' pictures
        labels: dict[str, list[str]] = {}  # by a picture's name
        names: dict[str, bool] = {}  # whether a picture has any item
        search = PictureSearch(search_folders(source, pictures))
        for drawing in _drawings(source, search, findings, conventions, progress):
            before, report = len(findings), _report(drawing, findings)
            labels.setdefault(_composed(drawing.name), []).extend(drawing.outlined)
            if drawing.name in names:
                allowed, fix = "each picture once", "put all its shapes into one entry"
                report.add("picture", drawing.name, allowed, fix)
            texts = _texts(drawing, asked, report)
            whole = drawing.sound and len(findings) == before
            names[drawing.name] = names.get(drawing.name, False) or (whole and bool(texts))
            # What is broken is looked through, not written.
            if texts and whole and broken.can_go(findings, skip_broken):
                content = drawing.picture.read_bytes()
                items = _write(folder, drawing, content, texts, is_sentence=asked is not None)
                written.setdefault(hashlib.sha256(content).hexdigest(), []).extend(items)
        if questions is not None and asked and broken.can_go(findings, skip_broken):
            _refuse_unanswered(questions, asked, labels, findings)
        least = 3 if test else 2
        if len(written) < least and broken.can_go(findings, skip_broken):
            allowed = f"{least} or more, one at least for each split"
            fix = "outline and label more pictures, or ask about more"
            Report(source, findings).add("different pictures", len(written), allowed, fix)
        elsewhere = "hint: if the pictures are elsewhere, name their folder with --pictures FOLDER"
        left_out = broken.settle(findings, skip_broken, [elsewhere] * bool(search.missing))
        counts = _split(folder, written, val, test, seed)
        if left_out:
            broken.write_list(draft / broken.LIST, left_out)
    with_items = sum(names.values())
    assumed = tuple(f"{count} {what}" for what, count in conventions.assumed.items())
    return Imported(counts, with_items, len(names) - with_items, left_out, assumed)


def _report(drawing: Drawing, findings: list[Finding]) -> Report:
    """A report for what is wrong with a picture as a whole."""
    return Report(drawing.notes, findings, f"{drawing.notes}: {drawing.name}")


def _drawings(
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
        others = [path for path in sorted(source.rglob("*")) if path.suffix in (".xml", ".csv")]
        if not any(is_foreign(Report(path, findings)) for path in others):
            fix = "name the folder that has them, or export them so"
            Report(source, findings).add("annotations", "no JSON file", READ, fix)
    return read_labelme(source, search, findings, conventions, progress)


def _coco_file(source: Path) -> Path | None:
    """The file itself, or the only JSON of a folder if it is COCO's or Label Studio's."""
    if source.is_file():
        return source
    files = json_files(source)
    if len(files) == 1:
        notes = load_json(Report(files[0]), object, "an object or a list")
        if isinstance(notes, list) or (isinstance(notes, dict) and "annotations" in notes):
            return files[0]
    return None


def _is_reason_seg(path: Path) -> bool:
    """Whether a file has a ReasonSeg item's keys, and no picture's name as LabelMe's have."""
    notes = load_json(Report(path), object, "an object", LARGEST_FILE)
    return isinstance(notes, dict) and (
        {"shapes", "text", "is_sentence"} <= notes.keys() and "imagePath" not in notes
    )


def _read_questions(path: Path, findings: list[Finding], conventions: Conventions) -> _Questions:
    """The questions of a CSV with a header, or of JSONL, both with COLUMNS."""
    report = Report(path, findings)
    asked: _Questions = {}
    try:
        rows = list(_rows(path, conventions))
    except (OSError, ValueError, LookupError, RecursionError, csv.Error) as error:
        got = f"{type(error).__name__} {error}"
        allowed = (
            f"CSV (.csv, a header first) or JSON lines (.jsonl) in UTF-8: {', '.join(COLUMNS)}"
        )
        report.add("file", got, allowed, "correct the file")
        return asked
    for line, row in rows:
        fields = [read_sentence(report, f"line {line}: {key}", row.get(key)) for key in COLUMNS]
        picture, label, text = (value and _composed(value) for value in fields)
        if picture and label and text:
            _check_text(report, f"line {line}: question", text, True)
            key = picture, _alike(label)
            asked.setdefault(key, _Question(line)).texts.append(text)
    return asked


def _rows(path: Path, conventions: Conventions) -> Iterator[tuple[int, dict[str, object]]]:
    """(number of the line, its fields). Raises OSError, ValueError, csv.Error."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise ValueError(f"a name that ends in {kind or 'nothing'}")
    with StringIO(conventions.text(read_regular(path)), newline="") as file:
        if kind == ".csv":
            first = file.readline()
            file.seek(0)
            comma = max(",;\t", key=first.count)  # spreadsheets of many countries write semicolons
            reader = csv.DictReader(file, strict=True, delimiter=comma)
            header = [name.strip() for name in reader.fieldnames or ()]
            # A spreadsheet's capitals; a name that is none of ours stays as it is.
            reader.fieldnames = [
                name.lower() if name.lower() in COLUMNS else name for name in header
            ]
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise ValueError(f"the header {','.join(reader.fieldnames or ())}")
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                yield number, row if isinstance(row, dict) else {}


def _texts(drawing: Drawing, asked: _Questions | None, report: Report) -> dict[str, list[str]]:
    """What is asked about each label of a picture; questions that are met here are taken out."""
    found = dict[str, list[str]]()
    spellings: dict[str, str] = {}
    for label in drawing.outlined:
        other = spellings.setdefault(_alike(label), label)
        if other != label:
            # Each would be asked for with a part of the answer.
            fix = "rename one of them"
            report.add(f"labels of {drawing.name}", [other, label], "one spelling of a label", fix)
        elif asked is None:
            phrase = label.replace("_", " ")
            _check_text(report, f"label of {drawing.name}", phrase, False)
            found[label] = [phrase]
        elif question := asked.pop((_composed(drawing.name), _alike(label)), None):
            found[label] = question.texts
    return found


def _composed(text: str) -> str:
    """One spelling of each letter: a Mac's file names have their accents apart."""
    return unicodedata.normalize("NFC", text)


def _alike(label: str) -> str:
    """The form that all spellings of a label share; COCO's Coffee_cup is read as coffee cup."""
    return " ".join(re.sub("[_:]", " ", _composed(label)).lower().split())


def _check_text(report: Report, what: str, text: str, is_sentence: bool) -> None:
    """A finding unless the model can be asked this."""
    try:
        question_for(text, is_sentence, lambda options: options[0])
    except PromptError as error:
        report.add(what, text, "words, none of them the model's own tokens", f"reword it: {error}")


def _refuse_unanswered(
    path: Path, asked: _Questions, labels: dict[str, list[str]], findings: list[Finding]
) -> None:
    """A finding for each question that nothing outlined answers, with what there is instead.

    `labels`: those outlined on each picture, by its name.
    """
    for (picture, label), question in asked.items():
        there = labels.get(picture)
        if there is None:
            close = difflib.get_close_matches(picture, labels, n=1)
            allowed = f"the name of one of the {len(labels)} pictures that were read"
        else:
            close = difflib.get_close_matches(label, there, n=1)
            allowed = f"a label outlined on {picture}: {', '.join(sorted(there)) or 'it has none'}"
        fix = "correct the line, or outline what it asks for"
        if close:
            fix = f"did you mean {close[0]}? Else {fix}"
        report = Report(path, findings, f"{path}: line {question.line}")
        report.add(f"line {question.line}", f"{picture}, {label}", allowed, fix)


def _write(
    folder: Path, drawing: Drawing, content: bytes, texts: dict[str, list[str]], is_sentence: bool
) -> list[Path]:
    """Write an item for each label, with the picture's content; the paths of their pictures."""
    # Readers judge by content, so any picture may be called .jpg.
    suffix = ".png" if drawing.picture.suffix.lower() == ".png" else ".jpg"
    stem = _plain(os.path.splitext(drawing.name)[0])
    written: list[Path] = []
    for label, asked in texts.items():
        told = {"text": asked, "is_sentence": is_sentence, "picture": drawing.name, "label": label}
        shapes = drawing.outlined[label]
        note = f'{{"shapes": {shapes}, {json.dumps(told, ensure_ascii=False)[1:]}\n'
        name = _write_new(f"{folder}{os.sep}{stem}-{_plain(label)}", note)
        picture = Path(name + suffix)
        _share(written[0] if written else None, content, picture)
        written.append(picture)
    return written


@lru_cache(maxsize=1000)  # labels come again and again
def _plain(text: str) -> str:
    """Part of a file name: letters and digits of any script, and a hyphen for all between."""
    plain = re.sub(r"\W+", "-", _composed(text)).strip("-") or "x"
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore")


def _write_new(name: str, note: str) -> str:
    """Write the JSON of an item; returns its path without a suffix.

    It is the first of `name`, `name-2`, ... that no item has: different labels may look alike.
    """
    number, path = 1, name
    while True:
        try:
            with open(f"{path}.json", "xb", buffering=0) as file:
                file.write(note.encode())
            return path
        except FileExistsError:
            number += 1
            path = f"{name}-{number}"


def _share(first: Path | None, content: bytes, picture: Path) -> None:
    """A hard link to an item's picture, if there is one and links are known here; else a copy."""
    if first is not None:
        try:
            return os.link(first, picture)
        except OSError:
            pass
    picture.write_bytes(content)


def _split(
    folder: Path, written: dict[str, list[Path]], val: float, test: float, seed: int
) -> dict[str, int]:
    """Move a share of the pictures from train to val, and to test; the numbers of items in each.

    The order is by a hash of seed and content, so the split of a picture hardly ever changes when
    others are added. Val is its beginning and test its end, so that neither share moves the other
    while some are left to train on.
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
            for file in (path, path.with_suffix(".json")):
                file.rename(folder.parent / split / file.name)
    return counts
