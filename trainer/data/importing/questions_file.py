"""Reads a file of questions about a user's pictures and matches them with labels."""

from __future__ import annotations

import csv
import difflib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TypeAlias

from profiles.files import read_regular
from trainer.data.findings import Finding, Report
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.outlines import Drawing
from trainer.data.json_fields import read_sentence
from trainer.prompts import PromptError, question_for

COLUMNS = ("picture", "label", "question")


@dataclass
class AskedLabel:
    """The questions about one label of one picture, and the line of the first."""

    line: int
    texts: list[str] = field(default_factory=list)


Questions: TypeAlias = dict[tuple[str, str], AskedLabel]  # by picture, and the label's key


def read_questions(path: Path, findings: list[Finding], conventions: Conventions) -> Questions:
    """The questions of a CSV with a header, or of JSONL, both with COLUMNS."""
    report = Report(path, findings)
    asked: Questions = {}
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
        picture, label, text = (value and composed(value) for value in fields)
        if picture and label and text:
            _check_text(report, f"line {line}: question", text, True)
            key = picture, label_key(label)
            asked.setdefault(key, AskedLabel(line)).texts.append(text)
    return asked


def _rows(path: Path, conventions: Conventions) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, fields). Raises OSError, ValueError, csv.Error."""
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
            # Spreadsheets may capitalise; other names stay unchanged.
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


def texts_for(drawing: Drawing, asked: Questions | None, report: Report) -> dict[str, list[str]]:
    """The texts for each label of a picture; these questions are removed from `asked`."""
    found = dict[str, list[str]]()
    spellings: dict[str, str] = {}
    for label in drawing.outlined:
        other = spellings.setdefault(label_key(label), label)
        if other != label:
            # Each would have only a part of its answer.
            fix = "rename one of them"
            report.add(f"labels of {drawing.name}", [other, label], "one spelling of a label", fix)
        elif asked is None:
            phrase = label.replace("_", " ")
            _check_text(report, f"label of {drawing.name}", phrase, False)
            found[label] = [phrase]
        elif question := asked.pop((composed(drawing.name), label_key(label)), None):
            found[label] = question.texts
    return found


def composed(text: str) -> str:
    """Composed letters: file names of a Mac have separate accents."""
    return unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1000)  # labels repeat
def label_key(label: str) -> str:
    """A key for all spellings of a label; COCO's Coffee_cup is read as coffee cup."""
    return " ".join(re.sub("[_:]", " ", composed(label)).lower().split())


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


def refuse_unanswered(
    path: Path, asked: Questions, labels: dict[str, list[str]], findings: list[Finding]
) -> None:
    """Add a finding for each question without an outlined answer, with the labels there are.

    `labels`: the labels outlined on each picture, by its name.
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
