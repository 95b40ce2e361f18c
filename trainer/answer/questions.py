"""Reads the questions for a trained model, without torch."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from profiles.files import read_regular
from profiles.text import argument, brief, is_text, one_line
from trainer.answer.output import NAMED, WRITTEN, shortened
from trainer.answer.question import Question
from trainer.data.findings import DataError, Report
from trainer.data.formats.reasonseg import Item, by_picture
from trainer.data.images import PICTURE_SUFFIXES, is_picture, read_image
from trainer.data.importing.encoding import decoded
from trainer.data.importing.questions_file import csv_rows
from trainer.data.json_fields import read_sentence
from trainer.data.picture_paths import picture_in
from trainer.prompts import PromptError

# What a line of a file of questions may hold. `picture` and `label` are of import's questions.
FLAGS = ("phrase", "explain")
FIELDS = ("image", "picture", "label", "question", *FLAGS)
_FLAG: dict[str, bool] = {"true": True, "false": False, "": False}  # as spreadsheets write them
_LOOKED_AT, _HINTED = 500, 3  # folders below one without a picture
EXAMPLE = '{"image": "a.jpg", "question": "What is hot?"}'


def question_of(item: Item) -> Question:
    """The question that an item is scored by."""
    return Question(item.image_path, item.texts[0], item.is_sentence)


def questions_of(items: Sequence[Item]) -> list[tuple[Item, Question]]:
    """Items and the questions that they are scored by: those about one picture in a row, under
    one of its names."""
    return [
        (item, replace(question_of(item), image=picture.image_path))
        for picture in by_picture(items)
        for item in picture.items
    ]


def read_questions(
    image: Path, question: str | None, file: Path | None, phrase: bool, explain: bool
) -> list[Question]:
    """One question about a picture or about each of a folder, or those of a file of JSON lines.

    Raises ValueError with all that is wrong.
    """
    if (question is None) == (file is None):
        raise ValueError("give a QUESTION or --questions FILE: one of the two")
    if file is not None:
        if not image.is_dir():
            what = "is a file" if image.exists() else "no such folder"
            raise ValueError(
                f"{image}: {what}; --questions asks about the pictures of a "
                f"folder, such as {argument(image.parent)}"
            )
        if not file.is_file():
            raise ValueError(f"{file}: no such file of questions")
        asked = _from_file(file, image)
    else:
        assert question is not None
        pictures = _pictures(image) if image.is_dir() else [image]
        asked = [Question(path, question, not phrase, explain) for path in pictures]
        wrong = [problem for one in asked[:1] for problem in _problems(one)]
        if phrase and explain:
            wrong.append("--explain needs a whole sentence; leave out --phrase")
        if wrong:
            raise ValueError("\n".join(f"  - {line}" for line in wrong))
    if not asked:
        hint = "" if file else _elsewhere(image)
        raise ValueError(f"{file or image}: no {'question' if file else 'picture'} in it{hint}")
    return asked


def _pictures(folder: Path) -> list[Path]:
    """The folder's pictures, judged by name, or else by content."""
    seen = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found = [path for path in seen if not path.is_dir() and is_picture(path)]
    stems_there = {shortened(path.stem) for path in found}
    return [path for path in found if not _is_answer(path, stems_there)]


def _elsewhere(folder: Path) -> str:
    """A hint that names the folders below which hold pictures, as those of a data set do."""
    found = list[str]()
    for place, below, names in islice(os.walk(folder), _LOOKED_AT):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if any(os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES for name in names):
            found.append(argument(Path(place)))
    more = ", …" if len(found) > _HINTED else ""
    listed = ", ".join(found[:_HINTED])
    return f"\n    hint: pictures lie in {listed}{more}; name one of these" if found else ""


def _is_answer(path: Path, stems_there: set[str]) -> bool:
    """Whether an earlier call wrote this file for a picture beside it."""
    written = WRITTEN.fullmatch(path.name)
    # A picture may itself be called a-2: then a-2.mask.png belongs to it.
    return written is not None and bool({written[1], path.name.split(".mask")[0],
                                         path.name.split(".overlay")[0]} & stems_there)  # fmt: skip


def ignored_files_line(folder: Path) -> str | None:
    """A line that lists a folder's other files, except hidden ones; None if there are none."""
    asked = set(_pictures(folder))
    left = [p for p in sorted(folder.iterdir()) if p not in asked and p.name[0] != "."]
    if not left:
        return None
    names = [one_line(p.name) + "/" * p.is_dir() for p in left[:NAMED]]
    names += [f"and {len(left) - NAMED} more"] * (len(left) > NAMED)
    return f"skipped in {folder}, not pictures: {', '.join(names)}"


def _from_file(file: Path, folder: Path) -> list[Question]:
    """The questions of JSON lines, or of a CSV. Raises DataError with all that is wrong, by line.

    Files with questions for `lisa-train import` can be read too.
    """
    report = Report(file)
    rows = _table(report) if file.suffix.lower() == ".csv" else _json_lines(report)
    asked = [one for line, row in rows for one in _asked(report, f"line {line}", row, folder)]
    if report.findings:
        raise DataError(report.findings)
    return asked


def _table(report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, fields) of a CSV; as in an import, other columns are not read."""
    try:
        text, _ = decoded(read_regular(report.path))
    except ValueError:
        report.add("file", "bytes of unknown letters", "text in UTF-8", "save it as CSV UTF-8")
        return
    with StringIO(text, newline="") as file:
        for line, row in csv_rows(report, file, ["question"]):
            known = {name: str(row[name]).strip() for name in FIELDS if name in row}
            flags = {name: _FLAG.get(known[name].lower(), known[name]) for name in FLAGS
                     if name in known}  # fmt: skip
            yield line, known | flags


def _json_lines(report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object), with one finding for a file of another kind."""
    content, objects = _in_utf8(read_regular(report.path)), 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip() and (row := _row(report, f"line {number}", line)) is not None:
            objects += 1
            yield number, row
    if report.findings and not objects:
        first = content.lstrip().partition(b"\n")[0].decode("utf-8-sig", "replace")
        report.findings.clear()
        allowed = f"a JSON object in each line, such as {EXAMPLE}, or a name that ends in .csv"
        report.add("file", first, allowed, "write it so")


def _in_utf8(content: bytes) -> bytes:
    """What PowerShell's > wrote in UTF-16, in UTF-8; all else as it is."""
    if not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return content
    return content.decode("utf-16", "replace").encode("utf-8")


def _row(report: Report, where: str, line: bytes) -> dict[str, Any] | None:
    """The object in a line; None with a finding added."""
    got: object = "bytes that are not UTF-8"
    try:
        got = line.decode("utf-8-sig").strip()
        row = json.loads(str(got))
        if isinstance(row, dict):
            return row
    except (ValueError, RecursionError):
        pass
    report.add(where, got, f"a JSON object in UTF-8, such as {EXAMPLE}", "write the line so")
    return None


def _asked(report: Report, where: str, row: dict[str, Any], folder: Path) -> list[Question]:
    """The question of a line's object; none with findings added."""
    before = len(report.findings)
    for name, value in row.items():
        if name not in FIELDS:
            report.add(f"{where}: {one_line(name)}", value, ", ".join(FIELDS), "leave it out")
        elif name in FLAGS and not isinstance(value, bool):
            report.add(f"{where}: {name}", value, "true or false", "write one of the two")
    if "image" in row and "picture" in row:
        report.add(f"{where}: picture", row["picture"], "an image or a picture", "leave one out")
    called = "picture" if "picture" in row else "image"
    picture = picture_in(report, f"{where}: {called}", row.get(called), folder)
    text = read_sentence(report, f"{where}: question", row.get("question"))
    phrase, explain = (row.get(name) is True for name in FLAGS)
    if phrase and explain:
        report.add(f"{where}: explain", True, "false for a phrase", "leave one of the two out")
    if picture is None or text is None or len(report.findings) > before:
        return []
    question = Question(picture, row["question"], not phrase, explain)
    try:
        question.turn()
    except PromptError as error:
        allowed = "words, none of them the model's own tokens"
        report.add(f"{where}: question", text, allowed, f"reword it: {error}")
    return [question]


def _problems(question: Question) -> Iterator[str]:
    try:
        question.turn()
    except PromptError as error:
        yield f"question: {error} (got {brief(question.text)})"
    if not question.image.is_file():
        swapped = is_text(question.text) and os.path.isfile(question.text)
        yield f"{one_line(question.image)}: no such picture" + (
            "; the picture comes before the question" if swapped else ""
        )


def unreadable(asked: Sequence[Question]) -> dict[Path, str]:
    """The error of each picture that cannot be decoded."""
    wrong = {}
    for picture in dict.fromkeys(one.image for one in asked):
        try:
            read_image(picture)
        except DataError as error:
            wrong[picture] = "; ".join(map(str, error.findings))
    return wrong
