"""What is asked of a trained model, and how its answers are written down; without torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.files import read_regular
from profiles.text import brief, one_line
from trainer.data.formats.reasonseg import DataError, Item, Report, is_picture, read_image
from trainer.data.overlays import COLOURS, overlay
from trainer.data.picture_paths import picture_in
from trainer.prompts import PromptError, Turn, explanatory_question_for, question_for

if TYPE_CHECKING:
    from trainer.answer.segmenter import Answer


# What `write_pictures` writes: asked about a folder twice, its own answers are no questions.
_WRITTEN = re.compile(r"(.+?)(?:-\d+)?\.(?:mask(?:-\d+)?|overlay)\.png")
_NAMED = 8  # of the files that are passed over
_LONGEST_STEM = 200  # bytes: systems take names of 255, and -12.mask-3.png comes behind


@dataclass(frozen=True)
class Question:
    """What is asked about a picture: a sentence, or a noun phrase."""

    image: Path
    text: str
    is_sentence: bool = True
    explain: bool = False

    def turn(self) -> Turn:
        """The question as the model was taught to hear it, unanswered. Raises PromptError."""
        if self.explain:
            return Turn(explanatory_question_for(self.text, _first), None)
        return Turn(question_for(self.text, self.is_sentence, _first), None)


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
            raise ValueError(f"{image}: {what}; --questions asks about the pictures of a folder")
        if not file.is_file():
            raise ValueError(f"{file}: no such file of questions")
        asked, wrong = _from_file(file, image)
    else:
        assert question is not None
        pictures = _pictures(image) if image.is_dir() else [image]
        asked = [Question(path, question, not phrase, explain) for path in pictures]
        wrong = [problem for one in asked[:1] for problem in _problems(one)]
        if phrase and explain:
            wrong.append("--explain asks with a whole sentence; leave --phrase out")
    if wrong:
        raise ValueError("\n".join(f"  - {line}" for line in dict.fromkeys(wrong)))
    if not asked:
        raise ValueError(f"{file or image}: no {'question' if file else 'picture'} in it")
    return asked


def _pictures(folder: Path) -> list[Path]:
    """The folder's pictures, whatever they are called: content decides where the name does not."""
    seen = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found = [path for path in seen if not path.is_dir() and is_picture(path)]
    stems_there = {_shortened(path.stem) for path in found}
    return [path for path in found if not _is_answer(path, stems_there)]


def _is_answer(path: Path, stems_there: set[str]) -> bool:
    """Whether an earlier call wrote this about a picture beside it."""
    written = _WRITTEN.fullmatch(path.name)
    # A picture may itself be called a-2: then a-2.mask.png is about that one.
    return written is not None and bool({written[1], path.name.split(".mask")[0],
                                         path.name.split(".overlay")[0]} & stems_there)  # fmt: skip


def passed_over(folder: Path) -> str | None:
    """A line about what of a folder is not asked about, but for hidden files; None for nothing."""
    asked = set(_pictures(folder))
    left = [p for p in sorted(folder.iterdir()) if p not in asked and p.name[0] != "."]
    if not left:
        return None
    names = [one_line(p.name) + "/" * p.is_dir() for p in left[:_NAMED]]
    names += [f"and {len(left) - _NAMED} more"] * (len(left) > _NAMED)
    return f"passed over in {folder}, no pictures to ask about: {', '.join(names)}"


def _from_file(file: Path, folder: Path) -> tuple[list[Question], list[str]]:
    """The questions of JSON lines, and what is wrong with each line; once, if none is such a line.

    A questions' file of `lisa-train import` in JSON lines serves too: its picture is the image.
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
    """What is wrong with each picture that cannot be read; all are decoded."""
    wrong = {}
    for picture in dict.fromkeys(one.image for one in asked):
        try:
            read_image(picture)
        except DataError as error:
            wrong[picture] = "; ".join(map(str, error.findings))
    return wrong


def stems(asked: Sequence[Question], folder: Path) -> list[Path]:
    """Where each answer's pictures go: `folder / NAME`, numbered where NAME was there before."""
    found: list[Path] = []
    for question in asked:
        name = _shortened(question.image.stem)
        number, stem = 2, folder / name
        while stem in found:
            number, stem = number + 1, folder / f"{name}-{number}"
        found.append(stem)
    return found


def _shortened(stem: str) -> str:
    """A picture's name with room for what comes behind it; a cut one ends in its checksum."""
    spelled = os.fsencode(stem)
    if len(spelled) <= _LONGEST_STEM:
        return stem
    whole = spelled[: _LONGEST_STEM - 9].decode("utf-8", "ignore")
    return f"{whole}-{hashlib.sha256(spelled).hexdigest()[:8]}"


def write_pictures(question: Question, answer: Answer, stem: Path) -> list[Path]:
    """STEM.mask.png (of several [SEG]: STEM.mask-1.png, …) and STEM.overlay.png, if any mask.

    What an earlier answer left under STEM's names goes: it would pass for this one's.
    """
    files: list[Path] = []
    if len(answer.masks):
        picture = read_image(question.image)
        for number, mask in enumerate(answer.masks, 1):
            name = f".mask-{number}.png" if len(answer.masks) > 1 else ".mask.png"
            files.append(stem.with_name(stem.name + name))
            Image.fromarray(mask.astype(np.uint8) * 255).save(files[-1])
            picture = overlay(picture, mask, COLOURS[(number - 1) % len(COLOURS)])
        files.append(stem.with_name(stem.name + ".overlay.png"))
        Image.fromarray(picture).save(files[-1])
    for path in _written_before(stem):
        if path not in files:
            path.unlink(missing_ok=True)
    return files


def _written_before(stem: Path) -> list[Path]:
    """The files under the names that `write_pictures` writes for STEM."""
    names = re.compile(re.escape(stem.name) + r"\.(?:mask(?:-[1-9][0-9]*)?|overlay)\.png")
    return [path for path in stem.parent.iterdir() if names.fullmatch(path.name)]


def row_of(question: Question, answer: Answer, files: list[Path]) -> dict[str, Any]:
    """An answer as plain values; masks as COCO's run lengths (read them with pycocotools)."""
    return {
        "image": str(question.image),
        "question": question.text,
        "answer": answer.text,
        "seconds": round(answer.seconds, 3),
        "masks": [run_lengths(mask) for mask in answer.masks],
        "files": [str(path) for path in files],
    } | ({"masks_left_out": answer.left_out} if answer.left_out else {})


def row_of_unanswered(question: Question, error: str) -> dict[str, Any]:
    """The row of a question whose picture cannot be read, or its answer not be written."""
    named = {"image": str(question.image), "question": question.text}
    return named | {"error": error, "masks": [], "files": []}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed RLE {"size": [H, W], "counts": text}, and its area."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode(), "area": int(mask.sum())}


def _first(options: Sequence[str]) -> str:
    return options[0]
