"""The question editor: a picture's outlines, question and answer, saved as a ReasonSeg item."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from profiles.files import write_whole
from profiles.records import Frozen
from profiles.splits import located
from studio.data import Split
from studio.places import NAME, Places, kind_of
from trainer.answer.question import Question
from trainer.data.findings import DataError, Report
from trainer.data.formats.reasonseg_annotation import read_annotation
from trainer.data.images import IMAGE_SUFFIXES, size_of
from trainer.data.json_fields import LARGEST_FILE, load_json

LoadedT = TypeVar("LoadedT", dict[str, Any], list[Any])
DATA = "ReasonSeg"
EXPLANATIONS = "explanatory"


class Picture(Frozen):
    """A picture to ask about, by its place."""

    picture: str = Field(max_length=4000)


class Outline(Frozen):
    """A closed outline in pixels of the upright picture."""

    label: Literal["target", "ignore"]
    points: tuple[tuple[float, float], ...] = Field(min_length=3, max_length=10_000)


class Edited(Picture):
    """A question about a picture, for a data set below the first folder."""

    data: str = Field(max_length=80)
    split: Split = "train"
    question: str = Field(max_length=2000)
    is_sentence: bool = True
    answer: str = Field("", max_length=2000)
    outlines: tuple[Outline, ...] = Field((), max_length=1000)


def look(asked: Picture, places: Places) -> dict[str, Any]:
    """A picture's size, and the item that it has already, if it is one of a data set."""
    path = places.path(asked.picture)
    if kind_of(path) != "picture":
        raise ValueError(f"{path.name}: is no picture")
    height, width = size_of(path)
    found: dict[str, Any] = {"width": width, "height": height, "outlines": [], "question": "",
                             "is_sentence": True, "answer": ""}  # fmt: skip
    notes = path.with_suffix(".json")
    known = path.parent.parent / EXPLANATIONS / f"{path.parent.name}.json"
    if not notes.is_file() or not (places.sees(notes) and places.sees(known)):
        return found
    report = Report(notes)
    texts, is_sentence, polygons = read_annotation(report, (height, width))
    if not texts:  # another tool's file: those are imported
        return found
    outlines = [{"label": "ignore" if "ignore" in one.label.lower() else "target",
                 "points": one.points.tolist()} for one in polygons]  # fmt: skip
    answers = [one for one in _explanations(known) if one.get("image") == path.name]
    answer = answers[0].get("outputs", "") if answers else ""
    return found | {"outlines": outlines, "question": texts[0], "is_sentence": is_sentence,
                    "answer": answer}  # fmt: skip


def save(edited: Edited, places: Places) -> dict[str, Any]:
    """Write the item, and the picture if it is not there yet. Raises DataError, PromptError."""
    picture = places.path(edited.picture)
    if kind_of(picture) != "picture":
        raise ValueError(f"{picture.name}: is no picture")
    Question(picture, edited.question, edited.is_sentence).turn()  # refuses the model's own tokens
    # The page's folder may itself be the data set.
    is_home = places.roots.get(edited.data) == places.home and located(places.home) is not None
    data = places.home if is_home else places.new(edited.data)
    known = located(data)
    root = known[0] if known is not None else data / DATA
    folder = places.without_links(root / edited.split)
    answers = places.without_links(root / EXPLANATIONS / f"{edited.split}.json")
    inside = picture.parent == folder
    name = picture.stem if inside else _unused(folder, picture.stem)
    notes = places.without_links(folder / f"{name}.json")
    before = _document(notes)
    text = _checked(edited, picture, before)
    ending = picture.suffix.lower() if picture.suffix.lower() in IMAGE_SUFFIXES else ".jpg"
    kept = picture if inside else folder / f"{name}{ending}"
    try:
        if not inside:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, kept)
        write_whole(notes, text)
    except OSError:
        if not inside:
            kept.unlink(missing_ok=True)  # a picture alone is no item
        raise
    _write_answer(answers, kept.name, edited, before.get("text", [])[:1])
    return {"picture": places.place(kept), "words": f"saved as {name} in {edited.split}"}


def _document(path: Path) -> dict[str, Any]:
    """The annotation that is there before; empty for none. Raises ValueError for a damaged one."""
    if not path.exists():
        return {}
    found = _loaded(path, dict, "an object")
    if not isinstance(found.get("text"), list):
        raise ValueError(f"{path}: holds another tool's notes; import them instead")
    return found


def _loaded(path: Path, kind: type[LoadedT], allowed: str) -> LoadedT:
    """A file's JSON, in the encodings that training reads. Raises DataError."""
    report = Report(path)
    found = load_json(report, kind, allowed, LARGEST_FILE)
    if found is None:
        raise DataError(report.findings)
    return found


def _checked(edited: Edited, picture: Path, before: dict[str, Any]) -> str:
    """The annotation as JSON, read once as training reads it. Raises DataError.

    What the file held besides, such as further wordings of the question, stays in it.
    """
    shapes = [{"label": one.label, "points": one.points} for one in edited.outlines]
    texts = [edited.question.strip(), *before.get("text", [])[1:]]
    document = before | {"text": texts, "is_sentence": edited.is_sentence, "shapes": shapes}
    text = json.dumps(document, ensure_ascii=False) + "\n"
    if len(text) > LARGEST_FILE:
        raise ValueError("outlines: too many points for one picture")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.json"
        path.write_text(text, encoding="utf-8")
        report = Report(path)
        read_annotation(report, size_of(picture))
    if report.findings:
        raise DataError(report.findings)
    return text


def _unused(folder: Path, stem: str) -> str:
    """A name for a new item: the picture's, numbered if it is taken."""
    plain = "".join(one if one.isalnum() or one in "-_" else "-" for one in stem)[:50].strip("-")
    plain = plain if plain.isascii() and NAME.fullmatch(plain) else "picture"
    number, name = 2, plain
    while any(os.path.lexists(folder / f"{name}{end}") for end in (".json", *IMAGE_SUFFIXES)):
        name, number = f"{plain}-{number}", number + 1
    return name


def _write_answer(path: Path, picture: str, edited: Edited, before: list[str]) -> None:
    """Keep the answer in words as ReasonSeg keeps explanations, in place of the earlier one."""
    entries, asked = _explanations(path), edited.question.strip()
    left = [one for one in entries
            if one.get("image") != picture or one.get("query") not in (asked, *before)]  # fmt: skip
    if edited.answer.strip():
        left.append({"image": picture, "query": asked, "outputs": edited.answer.strip()})
    if left != entries:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(left, ensure_ascii=False, indent=1) + "\n")


def _explanations(path: Path) -> list[dict[str, Any]]:
    """The explanations of a split. Raises DataError, ValueError for a damaged file."""
    if not path.exists():
        return []
    found = _loaded(path, list, "a list")
    if not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{path}: is no list of explanations; correct it first")
    return found
