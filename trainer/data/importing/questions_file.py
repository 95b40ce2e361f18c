"""Reads a file of questions about a user's pictures and matches them with labels."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TypeAlias

from profiles.files import read_regular
from trainer.data.findings import Finding, Report
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.labels import composed, label_key
from trainer.data.importing.outlines import Drawing
from trainer.data.json_fields import read_sentence
from trainer.data.picture_names import stems
from trainer.prompts import PromptError, question_for

COLUMNS = ("picture", "label", "question")
_ALSO = {"picture": "image"}  # as lisa-segment's files may call it


@dataclass
class AskedLabel:
    """The questions about one label of one picture, and the line of the first."""

    line: int
    texts: list[str] = field(default_factory=list)


Questions: TypeAlias = dict[tuple[str, str], AskedLabel]  # by picture, and the label's key


def read_questions(path: Path, findings: list[Finding], conventions: Conventions) -> Questions:
    """The questions of a CSV with a header, or of JSONL, both with COLUMNS or `image`."""
    report = Report(path, findings)
    asked: Questions = {}
    for line, row in _rows(report, conventions):
        given = [row.get(key, row.get(_ALSO.get(key, key))) for key in COLUMNS]
        fields = [
            read_sentence(report, f"line {line}: {key}", value)
            for key, value in zip(COLUMNS, given, strict=True)
        ]
        picture, label, text = (value and composed(value) for value in fields)
        if picture and label and text:
            _check_text(report, f"line {line}: question", text, True)
            key = picture, label_key(label)
            asked.setdefault(key, AskedLabel(line)).texts.append(text)
    return asked


def _rows(report: Report, conventions: Conventions) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, fields); a finding for every line that cannot be read."""
    kind = report.path.suffix.lower()
    try:
        text = conventions.text(read_regular(report.path))
    except OSError as error:
        report.add("file", error, "a file of questions", "name one that can be read")
        return
    except (ValueError, LookupError) as error:
        report.add("file", error, "text in UTF-8", "save it as UTF-8, or name its --encoding")
        return
    if kind not in _READERS:
        allowed = "a name that ends in .csv (a header first) or .jsonl (JSON lines)"
        report.add("file", kind or "no ending", allowed, "save it as one of the two")
        return
    with StringIO(text, newline="") as file:
        yield from _READERS[kind](report, file)


def csv_rows(
    report: Report, file: StringIO, columns: Sequence[str] = COLUMNS
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, fields) of a table with a header that has these columns, and others."""
    first = file.readline()
    file.seek(0)
    comma = max(",;\t", key=first.count)  # spreadsheets of many countries write semicolons
    rows = _csv_lines(report, file, comma)
    _, given = next(rows, (1, []))
    # Spreadsheets may capitalise; other names stay unchanged.
    names = [name.strip().lower() for name in given]
    if lacking := [one for one in columns if not {one, _ALSO.get(one)} & {*names}]:
        fix = f"add a column {' and a column '.join(lacking)}"
        report.add("line 1", comma.join(given), f"a header with {', '.join(columns)}", fix)
        return
    for line, fields in rows:
        if any(one.strip() for one in fields[len(names) :]):
            fix = f"put a question with {comma!r} in it between quotation marks"
            report.add(f"line {line}: fields", len(fields), f"{len(names)}, as in line 1", fix)
        elif fields:
            yield line, dict(zip(names, fields, strict=False))


def _csv_lines(report: Report, file: StringIO, comma: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of every row, the first of its lines where it has several."""
    reader = csv.reader(file, strict=True, delimiter=comma)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fix = 'end what a quotation mark begins, and write "" for one inside'
            report.add(f"line {line}: fields", error, "a row of CSV", fix)


def _json_rows(report: Report, file: StringIO) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = line.strip()
        if isinstance(row, dict):
            yield number, row
        else:
            allowed = f"a JSON object with {', '.join(COLUMNS)}"
            report.add(f"line {number}: JSON", row, allowed, "write the line so")


_READERS = {".csv": csv_rows, ".jsonl": _json_rows}


def texts_for(
    drawing: Drawing, asked: Questions | None, spellings: dict[str, str], report: Report
) -> dict[str, list[str]]:
    """The texts for each label of a picture; these questions are removed from `asked`.

    `spellings`: how a label is asked for, by its key; labels are spelled as when first seen.
    """
    found = dict[str, list[str]]()
    for label in drawing.outlined:
        if asked is None:
            phrase = spellings.setdefault(label_key(label), label).replace("_", " ")
            _check_text(report, f"label of {drawing.name}", phrase, False)
            found[label] = [phrase]
        elif question := asked.pop((composed(drawing.name), label_key(label)), None):
            found[label] = question.texts
    return found


def _check_text(report: Report, what: str, text: str, is_sentence: bool) -> None:
    """Add a finding unless the text can be put into a prompt."""
    if error := _objection(text, is_sentence):
        report.add(what, text, "words, none of them the model's own tokens", f"reword it: {error}")


@lru_cache(maxsize=1000)  # labels repeat
def _objection(text: str, is_sentence: bool) -> str:
    """Why the text cannot be put into a prompt; empty if it can."""
    try:
        question_for(text, is_sentence, lambda options: options[0])
    except PromptError as error:
        return str(error)
    return ""


def _alike(picture: str, known: Collection[str]) -> list[str]:
    """The picture that this name may mean: the only one called so, in any folder and in any case.

    Else the one that is called most like it, if any is.
    """
    wanted = stems(picture)
    same = [name for name in known if not wanted.isdisjoint(stems(name))]
    return same if len(same) == 1 else difflib.get_close_matches(picture, known, n=1, cutoff=0.7)


def refuse_unanswered(
    path: Path,
    asked: Questions,
    labels: dict[str, list[str]],
    findings: list[Finding],
    is_there: Callable[[str], bool],
) -> None:
    """Add a finding for each of these questions, which no outline answers.

    `labels`: the labels outlined on each picture, by its name. `is_there`: whether there is a
    picture of this name, with or without an outline. Findings about the file come last, by their
    lines.
    """
    for (picture, label), question in asked.items():
        there = labels.get(picture)
        fix = "correct the line, or outline what it asks for"
        close: list[str] = []
        if there is not None:
            close = difflib.get_close_matches(label, there, n=1)
            allowed = f"a label outlined on {picture}: {', '.join(sorted(there)) or 'it has none'}"
        else:
            allowed = f"the name of one of the {len(labels)} pictures that were read"
            if is_there(picture):  # a like name would be another picture
                fix = "outline it, or take the line out: nobody has outlined that picture"
            else:
                close = _alike(picture, labels)
        if close:
            fix = f"did you mean {close[0]}? Else {fix}"
        report = Report(path, findings, f"{path}: line {question.line}")
        report.add(f"line {question.line}", f"{picture}, {label}", allowed, fix)

    def line(finding: Finding) -> int:
        found = re.match(r"line (\d+)", finding.what) if finding.where == str(path) else None
        return int(found[1]) if found else 0

    findings.sort(key=line)
