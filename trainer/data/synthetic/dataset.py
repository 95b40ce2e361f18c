"""Synthetic ReasonSeg data sets: drawn scenes, questions and masks in ReasonSeg's own format.

The drawing is in ``scenes``, the questions are in ``questions`` and their words in ``wording``.
The wording is disjoint between the splits; attribute words and clue nouns are shared, because a
tiny model has no knowledge of the world to fall back on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.atomic_folder import atomic_folder
from trainer.data.synthetic.questions import (
    DIRECT,
    HELD_OUT,
    KINDS,
    PRETRAINING,
    REASONING,
    SyntheticQuestion,
    all_words,
    check_request,
    make_questions,
    sample_texts,
)
from trainer.data.synthetic.scenes import Scene, Shape, draw_scene
from trainer.data.synthetic.wording import SPLITS

__all__ = [
    "DIRECT",
    "HELD_OUT",
    "KINDS",
    "PRETRAINING",
    "REASONING",
    "SPLITS",
    "SyntheticQuestion",
    "Scene",
    "Shape",
    "all_words",
    "make_questions",
    "draw_scene",
    "sample_texts",
    "write_dataset",
]

FOLDER: Final = "ReasonSeg"
QUESTIONS_PER_SCENE: Final = 3
JPEG_QUALITY: Final = 95
FLAG_PROBABILITY: Final = 0.1
# Consecutive scenes without a requested question before giving up.
PATIENCE: Final = 2000

_Polygon = list[list[int]]


def write_dataset(
    root: Path,
    *,
    seed: int,
    train: int,
    val: int,
    test: int,
    kinds: Sequence[str] = KINDS,
    size: int = 256,
) -> Path:
    """Write ``root/ReasonSeg/{train,val,test}`` and return ``root/ReasonSeg``.

    ``train``, ``val`` and ``test`` are numbers of questions (JSON files, each with its JPEG); up
    to three share a scene.  A split of 0 gets no folder.  ``kinds`` are balanced.  Scenes and
    wording are disjoint between the splits.  The same arguments give the same bytes.  ``size``
    is the side of the pictures in px.

    The data set appears at once when it is complete.  Raises FileExistsError if there is one
    already, ValueError for unusable arguments.
    """
    check_request(kinds, SPLITS[0])
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if seed < 0 or min(counts.values()) < 0 or not any(counts.values()):
        raise ValueError(
            f"need seed >= 0, counts >= 0 and at least one question, got seed={seed}, "
            f"{', '.join(f'{split}={count}' for split, count in counts.items())}"
        )
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"a kind is named twice in {list(kinds)}: name each kind once")
    final = Path(root) / FOLDER
    with atomic_folder(final) as draft:
        for split, count in counts.items():
            if count:
                _write_split(draft / split, seed, split, count, kinds, size)
    return final


def _write_split(
    folder: Path, seed: int, split: str, count: int, kinds: Sequence[str], size: int
) -> None:
    """Write ``count`` questions, the kinds in equal parts as far as ``count`` allows."""
    folder.mkdir(parents=True)
    each, over = divmod(count, len(kinds))
    wanted = {kind: each + (place < over) for place, kind in enumerate(kinds)}
    number = fruitless = 0
    while any(wanted.values()):
        # The split's place in the seed keeps its scenes apart from those of the other splits.
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        scene = draw_scene(rng, size)
        # Kinds with most questions missing come first: rare ones must not be left to the end.
        open_kinds = sorted((kind for kind in kinds if wanted[kind]), key=lambda k: -wanted[k])
        questions = make_questions(rng, scene, open_kinds, split)[:QUESTIONS_PER_SCENE]
        if questions and _write_scene(folder, rng, f"{split}_{number:06d}", scene, questions):
            fruitless = 0
            for question in questions:
                wanted[question.kind] -= 1
        else:
            fruitless += 1
        if fruitless > PATIENCE:
            raise RuntimeError(
                f"{PATIENCE} scenes in a row of {size} px gave no question of the "
                f"kinds {open_kinds}: use a larger size or leave these kinds out"
            )
        number += 1


def _write_scene(
    folder: Path,
    rng: np.random.Generator,
    name: str,
    scene: Scene,
    questions: list[SyntheticQuestion],
) -> bool:
    """Write each question under its own name; returns False and writes nothing for a bad scene."""
    outlines = _polygons(scene)
    if outlines is None:
        return False
    picture = _jpeg(scene.image)
    for number, question in enumerate(questions):
        stem = folder / f"{name}_{number}"
        stem.with_suffix(".jpg").write_bytes(picture)
        text = json.dumps(_annotation(rng, scene, outlines, question), ensure_ascii=False)
        stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8", newline="\n")
    return True


def _annotation(
    rng: np.random.Generator, scene: Scene, outlines: list[_Polygon], question: SyntheticQuestion
) -> dict[str, Any]:
    """The JSON object of one question."""
    shapes: list[dict[str, Any]] = [
        {"label": "target", "points": outlines[index]} for index in question.targets
    ]
    if scene.ignore is not None:
        smudge = _polygon(scene.ignore)
        if smudge is None:
            raise RuntimeError("a smudge has no single outline: this is a defect of draw_scene")
        shapes.append({"label": "ignore", "points": smudge})
    if rng.random() < FLAG_PROBABILITY:
        shapes.append(_flag(rng, scene.image.shape[0]))
    return {
        "shapes": shapes,
        "text": list(question.texts),
        "is_sentence": question.is_sentence,
        "kind": question.kind,
    }


def _flag(rng: np.random.Generator, size: int) -> dict[str, Any]:
    """A stray triangle of the kind that readers of ReasonSeg have to skip."""
    return {"label": "flag", "points": rng.integers(0, size, (3, 2)).tolist()}


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    # Without chroma subsampling: it would blur the borders of these small coloured shapes.
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _polygons(scene: Scene) -> list[_Polygon] | None:
    """The outline of every shape's visible region; None if one of them has no single outline."""
    outlines = [_polygon(scene.ids == index) for index in range(len(scene.shapes))]
    found = [outline for outline in outlines if outline is not None]
    return found if len(found) == len(outlines) else None


def _polygon(mask: NDArray[np.bool_]) -> _Polygon | None:
    """The outline [[x, y], ...] of ``mask`` (bool [H, W]); None unless one piece without holes."""
    import cv2  # not needed to draw scenes, and not installed where pretraining runs

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) != 1 or len(contours[0]) < 3:
        return None
    return [[int(x), int(y)] for x, y in contours[0][:, 0]]
