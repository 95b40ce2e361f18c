"""Questions about drawn scenes, with their answers: direct ones and some that need reasoning.

A question is asked only if its answer is clear by a margin: the largest shape is clearly
larger than the next, and "left of" needs a clear horizontal distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.data.synthetic.candidates import CENTRE, MAKERS, MARKS, SIDES, SIZE_WORDS, TIMES
from trainer.data.synthetic.scene_facts import EDGES
from trainer.data.synthetic.scenes import COLOURS, FORMS, TEXTURES, Scene, draw_scene
from trainer.data.synthetic.wording import (
    COLOUR_CLUES,
    FORM_CLUES,
    POSITION_CLUES,
    SIZE_CLUES,
    SPLITS,
    agreement,
    patterns,
    plural,
    render,
    tokens,
)

DIRECT: Final = (
    "colour",
    "shape",
    "texture",
    "colour-shape",
    "size",
    "position",
    "relation",
    "counting",
)
REASONING: Final = ("negation", "colour-clue", "shape-clue", "size-clue", "position-clue")
KINDS: Final[tuple[str, ...]] = DIRECT + REASONING
# Never used in pretraining, so that fine-tuning has something to teach.
HELD_OUT: Final[tuple[str, ...]] = ("negation", "colour-clue", "shape-clue")
PRETRAINING: Final[tuple[str, ...]] = tuple(kind for kind in KINDS if kind not in HELD_OUT)


@dataclass(frozen=True)
class SyntheticQuestion:
    """One question about a scene.

    ``texts`` are 1..4 rephrasings: whole sentences if ``is_sentence``, else noun phrases without
    "the".  ``targets`` are the indices of the shapes that answer it, in ascending order.
    """

    kind: str
    texts: tuple[str, ...]
    is_sentence: bool
    targets: tuple[int, ...]


def make_questions(
    rng: np.random.Generator, scene: Scene, kinds: Sequence[str], split: str
) -> list[SyntheticQuestion]:
    """Questions about ``scene``: at most one of each kind, in the order of ``kinds``.

    ``split`` ("train", "val" or "test") selects the wording, which is disjoint between splits;
    see ``trainer.data.synthetic.wording``. Kinds without a clear answer here are left out.

    Raises ValueError for an unknown kind or split.
    """
    check_request(kinds, split)
    questions = []
    for kind in kinds:
        candidates = MAKERS[kind](rng, scene)
        if not candidates:
            continue
        weights = np.cumsum([candidate.weight for candidate in candidates])
        draw = rng.random() * weights[-1]
        chosen = candidates[int(np.searchsorted(weights, draw, side="right"))]
        sentence = bool(rng.random() < (0.5 if kind in DIRECT else 0.85))
        texts = render(rng, chosen.key, chosen.slots, len(chosen.targets) > 1, split, sentence)
        questions.append(SyntheticQuestion(kind, texts, sentence, chosen.targets))
    return questions


def check_request(kinds: Sequence[str], split: str) -> None:
    """Raise ValueError for an unknown kind or split, or for no kind at all."""
    unknown = [kind for kind in kinds if kind not in MAKERS]
    if unknown or not kinds:
        raise ValueError(f"unknown kinds {unknown}: use some of {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")


def sample_texts(
    rng: np.random.Generator,
    n: int,
    *,
    kinds: Sequence[str] = KINDS,
    splits: Sequence[str] = SPLITS,
) -> list[str]:
    """``n`` texts as they occur in the splits, in equal parts; for training a tokenizer."""
    texts: list[str] = []
    while len(texts) < n:
        # Small pictures suffice: the texts depend only on the arrangement.
        scene = draw_scene(rng, 64, smudge=0.0)
        for split in splits:
            for question in make_questions(rng, scene, kinds, split):
                texts.extend(question.texts)
    return [texts[int(i)] for i in rng.permutation(len(texts))[:n]]


def all_words() -> tuple[str, ...]:
    """Every lower-case word that any text of any split can contain, sorted."""
    sources = [text for split in SPLITS for text in patterns(split)]
    for table in (COLOUR_CLUES, FORM_CLUES, SIZE_CLUES, POSITION_CLUES, SIZE_WORDS):
        sources += [text for texts in table.values() for text in texts]
    for name, superlatives in [edge[:2] for edge in EDGES.values()] + [CENTRE]:
        sources += [name, *superlatives]
    sources += [side for side, *_ in SIDES] + list(TIMES.values()) + list(MARKS.values())
    sources += [*COLOURS, *FORMS, *map(plural, FORMS), *TEXTURES, "colour form texture a"]
    sources += [*agreement(True).values(), *agreement(False).values()]
    return tuple(sorted({word for text in sources for word in tokens(text)}))
