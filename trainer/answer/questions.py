"""Reads the questions for a trained model, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from profiles.files import read_regular
from profiles.text import argument, brief, one_line
from trainer.answer.output import NAMED, WRITTEN, shortened
from trainer.answer.question import Question
from trainer.data.findings import DataError, Report
from trainer.data.formats.reasonseg import Item
from trainer.data.images import is_picture, read_image
from trainer.data.picture_paths import picture_in
from trainer.prompts import PromptError


def question_of(item: Item) -> Question:
    """The question that an item is scored by."""
    return Question(item.image_path, item.texts[0], item.is_sentence)


def read_questions(
    image: Path, question: str | None, file: Path | None, phrase: bool, explain: bool
) -> list[Question]:
    """One question about a picture or about each of a folder, or those of a file of JSON lines.

    Raises ValueError with every line that is wrong.
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
        asked, wrong = _from_file(file, image)
    else:
        assert question is not None
        pictures = _pictures(image) if image.is_dir() else [image]
        asked = [Question(path, question, not phrase, explain) for path in pictures]
        wrong = [problem for one in asked[:1] for problem in _problems(one)]
        if phrase and explain:
            wrong.append("--explain needs a whole sentence; leave out --phrase")
    if wrong:
        raise ValueError("\n".join(f"  - {line}" for line in dict.fromkeys(wrong)))
    if not asked:
        raise ValueError(f"{file or image}: no {'question' if file else 'picture'} in it")
    return asked


def _pictures(folder: Path) -> list[Path]:
    """The folder's pictures, judged by name, or else by content."""
    seen = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found = [path for path in seen if not path.is_dir() and is_picture(path)]
    stems_there = {shortened(path.stem) for path in found}
    return [path for path in found if not _is_answer(path, stems_there)]


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


def _from_file(file: Path, folder: Path) -> tuple[list[Question], list[str]]:
    """The questions of JSON lines, and the errors of each line; one error if no line is an object.

    Files with questions for `lisa-train import` in JSON lines can be read too.
    """
    asked, wrong, objects = [], [], 0
    allowed = {"image": str, "picture": str, "label": str, "question": str, "phrase": bool,
               "explain": bool}  # fmt: skip
    for number, line in enumerate(read_regular(file).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"got {brief(row)}; allowed: an object with image and question")
            objects += 1
            for key, value in row.items():
                if key not in allowed or not isinstance(value, allowed[key]):
                    raise ValueError(f"{brief(key)[1:-1]}: got {brief(value)}; allowed: image and "
                                     "question (text), phrase, explain (bool)")  # fmt: skip
            if ("image" in row) == ("picture" in row) or "question" not in row:
                raise ValueError("needs image and question")
        except (ValueError, RecursionError) as error:
            wrong.append(f"{file}:{number}: {error}")
            continue
        found = Report(Path(f"{file}:{number}"))
        picture = picture_in(found, "image", row.get("image", row.get("picture")), folder)
        if picture is None:
            wrong += map(str, found.findings)
            continue
        phrase, explain = row.get("phrase", False), row.get("explain", False)
        asked.append(Question(picture, row["question"], not phrase, explain))
        wrong += [f"{file}:{number}: {problem}" for problem in _problems(asked[-1])]
    if wrong and not objects:
        return [], [f"{wrong[0]}; no line is a JSON object, and each has to be, such as "
                    '{"image": "a.jpg", "question": "What is hot?"}']  # fmt: skip
    return asked, wrong


def _problems(question: Question) -> Iterator[str]:
    try:
        question.turn()
    except PromptError as error:
        yield f"question: {error} (got {brief(question.text)})"
    if not question.image.is_file():
        yield f"{one_line(question.image)}: no such picture"


def unreadable(asked: Sequence[Question]) -> dict[Path, str]:
    """The error of each picture that cannot be decoded."""
    wrong = {}
    for picture in dict.fromkeys(one.image for one in asked):
        try:
            read_image(picture)
        except DataError as error:
            wrong[picture] = "; ".join(map(str, error.findings))
    return wrong
