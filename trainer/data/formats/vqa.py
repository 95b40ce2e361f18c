"""Reads dialogues about pictures, without masks, in LLaVA-Instruct's format.

On disk: ``ROOT/vqa/*.json``, each a list of ``{id, image, conversations: [{from: human, value},
{from: gpt, value}, …]}``; a picture is in ``ROOT/coco/train2017`` or, with its folders named, in
``ROOT``. Entries without ``image``, such as some in LLaVA-1.5's mix, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.findings import Finding, Report
from trainer.data.json_fields import load_json, read_sentence
from trainer.data.picture_paths import picture_in
from trainer.data.pictures import AskedTurn, Conversation, DataSet, Paint, Scanned
from trainer.prompts import IMAGE_PREFIX, IMAGE_TOKEN, RESERVED_TOKENS, Turn

_FIX = "correct the dialogue or take it out"


@dataclass(frozen=True)
class Dialogue:
    """A picture with a dialogue about it."""

    name: str
    image_path: Path
    where: str
    turns: tuple[Turn, ...]

    @property
    def questions(self) -> int:
        """One: its turns refer to each other."""
        return 1

    def draw(self, rng: np.random.Generator, most: int) -> list[Conversation]:
        """The whole dialogue."""
        return [self.draw_one(rng, most)]

    def draw_one(self, rng: np.random.Generator, most_masks: int) -> Conversation:
        """The whole dialogue."""
        return [AskedTurn(turn) for turn in self.turns]

    def all_masks(self) -> Iterator[Paint]:
        """It has no masks."""
        return iter(())


def read(root: Path, limit: int | None = None) -> Scanned:
    """The data sets found, each with its first `limit` dialogues, and every finding."""
    sets: list[DataSet] = []
    findings: list[Finding] = []
    for path in sorted((root / "vqa").glob("*.json")):
        if path.name.startswith("."):  # macOS's ._x.json
            continue
        report = Report(path, findings)
        entries = load_json(report, list, "a list of dialogues") or []
        shown = [(n, e) for n, e in enumerate(entries) if not _is_text_only(e)]
        read_all = (_read(report, root, index, entry) for index, entry in shown[:limit])
        dialogues = [dialogue for dialogue in read_all if dialogue is not None]
        left_out = len(entries) - len(shown)
        sets.append(DataSet(f"vqa/{path.stem}", dialogues, left_out, annotations=(path,)))
    return sets, findings


def _is_text_only(entry: object) -> bool:
    return isinstance(entry, dict) and "conversations" in entry and "image" not in entry


def _read(report: Report, root: Path, index: int, entry: object) -> Dialogue | None:
    place = f"[{index}]"
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    folders = root / "coco" / "train2017", root
    image = picture_in(report, f"{place}.image", fields.get("image"), *folders)
    turns = _read_turns(report, f"{place}.conversations", fields.get("conversations"))
    if image is None or not turns:
        return None
    where = f"{report.path}: {place}"
    return Dialogue(f"{report.path.stem}{place}", image, where, turns)


def _read_turns(report: Report, what: str, value: object) -> tuple[Turn, ...]:
    """Questions with their answers; empty with a finding added."""
    said = value if isinstance(value, list) else []
    speakers = [line.get("from") if isinstance(line, dict) else None for line in said]
    if not said or len(said) % 2 or speakers != ["human", "gpt"] * (len(said) // 2):
        got = speakers if said else value
        report.add(what, got, "human and gpt in turn, the last word gpt's", _FIX)
        return ()
    texts = [_text(report, f"{what}[{n}].value", line.get("value")) for n, line in enumerate(said)]
    return tuple(
        Turn(IMAGE_PREFIX + question, answer)
        for question, answer in zip(texts[::2], texts[1::2], strict=True)
        if question is not None and answer is not None
    )


def _text(report: Report, what: str, value: object) -> str | None:
    """The text of a message, without the image token; None with a finding added."""
    if isinstance(value, str):
        value = value.replace(IMAGE_TOKEN, "")  # this project adds it where it belongs
    text = read_sentence(report, what, value)
    if text is not None and any(token in text for token in RESERVED_TOKENS):
        report.add(what, text, f"text without {', '.join(RESERVED_TOKENS)}", _FIX)
        return None
    return text
