"""Questions about drawn scenes, with their answers: direct ones and some that need reasoning.

A question is only asked where its answer is clear by a margin: the largest shape is clearly
larger than the next, nothing lies about level with the shape that something is "left of".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.data.synthetic.scenes import COLOURS, FORMS, TEXTURES, Scene, draw_scene, extent
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
# Never shown to a pretrained model: what is left for fine-tuning to teach.
HELD_OUT: Final[tuple[str, ...]] = ("negation", "colour-clue", "shape-clue")
PRETRAINING: Final[tuple[str, ...]] = tuple(kind for kind in KINDS if kind not in HELD_OUT)

SIZE_MARGIN: Final = 1.25  # ratio of radii
PLACE_MARGIN: Final = 0.06  # of the picture's side, between centres
EDGE_MARGIN: Final = 0.03  # of the picture's side, between outlines
_TIMES: Final = {1: "once", 2: "twice", 3: "three times", 4: "four times"}
_SIDES: Final = (
    ("to the left of", 0, -1),
    ("to the right of", 0, 1),
    ("above", 1, -1),
    ("below", 1, 1),
)
_SIZE_WORDS: Final = {"largest": ("largest", "biggest"), "smallest": ("smallest",)}
_CENTRE: Final = ("centre", ("most central",))
_MARKS: Final = {"striped": "stripes", "dotted": "dots"}
# Edge: its name in a question, the superlatives for it, what is compared, and in which direction.
_EDGES: Final[dict[str, tuple[str, tuple[str, ...], int, int]]] = {
    "left": ("left side", ("leftmost",), 0, 1),
    "top": ("top", ("topmost", "highest"), 1, 1),
    "right": ("right side", ("rightmost",), 2, -1),
    "bottom": ("bottom", ("bottommost", "lowest"), 3, -1),
}


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    ``texts`` are 1..4 rephrasings: whole sentences if ``is_sentence``, else noun phrases without
    "the".  ``targets`` are the indices of the shapes that answer it, in ascending order.
    """

    kind: str
    texts: tuple[str, ...]
    is_sentence: bool
    targets: tuple[int, ...]


@dataclass(frozen=True)
class _Candidate:
    """What could be asked: a key of ``wording.PHRASES``, its placeholders, the answer."""

    key: str
    slots: dict[str, str]
    targets: tuple[int, ...]
    weight: float = 1.0


_Group = tuple[str, str, tuple[int, ...]]  # attribute, its value, the shapes that have it


def _groups(
    scene: Scene, attributes: Iterable[str] = ("colour", "form", "texture")
) -> list[_Group]:
    """Every value seen of every attribute, unless all shapes share it."""
    found: list[_Group] = []
    for attribute in attributes:
        members: dict[str, list[int]] = {}
        for index, shape in enumerate(scene.shapes):
            members.setdefault(getattr(shape, attribute), []).append(index)
        found += [
            (attribute, value, tuple(indices))
            for value, indices in members.items()
            if len(indices) < len(scene.shapes)
        ]
    return found


def _noun(attribute: str, value: str) -> str:
    return value if attribute == "form" else f"{value} shape"


def _named(noun: str, targets: tuple[int, ...]) -> str:
    return plural(noun) if len(targets) > 1 else noun


def _choose(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _by_attribute(
    attribute: str, key: str
) -> Callable[[np.random.Generator, Scene], list[_Candidate]]:
    def make(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
        return [
            _Candidate(key, {attribute: value, "noun": _named(value, targets)}, targets)
            for _, value, targets in _groups(scene, [attribute])
        ]

    return make


def _two_attributes(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    found = []
    for first in ("colour", "texture"):
        pairs = Counter((getattr(shape, first), shape.form) for shape in scene.shapes)
        for adjective, form in pairs:
            adjectives = {i for i, s in enumerate(scene.shapes) if getattr(s, first) == adjective}
            forms = {i for i, s in enumerate(scene.shapes) if s.form == form}
            targets = tuple(sorted(adjectives & forms))
            if len(targets) == len(scene.shapes):
                continue
            # Questions that one of the two words would already answer are asked less often.
            hard = set(targets) not in (adjectives, forms)
            weight = (4.0 if hard else 1.0) * (3.0 if first == "colour" else 1.0)
            slots = {"adjective": adjective, "form": form, "noun": _named(form, targets)}
            found.append(_Candidate("colour-shape", slots, targets, weight))
    return found


def _comparable(scene: Scene) -> list[tuple[str, tuple[int, ...]]]:
    """What can be compared: all shapes, and those that share a form or a colour."""
    everything = ("shape", tuple(range(len(scene.shapes))))
    return [everything] + [
        (_noun(attribute, value), members)
        for attribute, value, members in _groups(scene, ("form", "colour"))
        if len(members) > 1
    ]


def _visible(scene: Scene) -> list[int]:
    """The visible area of every shape in px."""
    return [int(n) for n in np.bincount(scene.ids.ravel() + 1, minlength=len(scene.shapes) + 1)[1:]]


def _extreme_sizes(scene: Scene, members: tuple[int, ...], visible: list[int]) -> dict[str, int]:
    """The clearly largest and smallest of ``members``, by whole and by visible area alike."""
    if len(members) < 2:
        return {}
    ranked = sorted(members, key=lambda i: scene.shapes[i].radius)
    radii = [scene.shapes[i].radius for i in ranked]
    areas = [visible[i] for i in ranked]
    found = {}
    if radii[-1] >= SIZE_MARGIN * radii[-2] and areas[-1] > max(areas[:-1]):
        found["largest"] = ranked[-1]
    if radii[1] >= SIZE_MARGIN * radii[0] and areas[0] < min(areas[1:]):
        found["smallest"] = ranked[0]
    return found


def _sizes(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    visible = _visible(scene)
    return [
        _Candidate("size", {"most": _choose(rng, _SIZE_WORDS[name]), "noun": noun}, (index,))
        for noun, members in _comparable(scene)
        for name, index in _extreme_sizes(scene, members, visible).items()
    ]


def _clear_winner(values: dict[int, float], margin: float) -> int | None:
    """The key of the smallest value if it is smaller than the next by ``margin``."""
    ranked = sorted(values, key=values.__getitem__)
    if len(ranked) < 2 or values[ranked[1]] - values[ranked[0]] < margin:
        return None
    return ranked[0]


def _extreme_places(scene: Scene, members: tuple[int, ...]) -> dict[str, int]:
    """The clearly leftmost ... of ``members``, and that nearest to the picture's centre.

    Centres and outlines must agree, so that both ways of measuring give the same answer.
    """
    size = scene.image.shape[0]
    extents = {i: extent(scene.shapes[i]) for i in members}
    found = {}
    for edge, (_, _, side, sign) in _EDGES.items():
        places = {i: sign * scene.shapes[i].centre[side % 2] for i in members}
        outer = {i: sign * extents[i][side] for i in members}
        winner = _clear_winner(places, PLACE_MARGIN * size)
        if winner is not None and winner == _clear_winner(outer, EDGE_MARGIN * size):
            found[edge] = winner
    gaps = {i: math.dist(scene.shapes[i].centre, (size / 2, size / 2)) for i in members}
    inner = {i: gap - scene.shapes[i].radius for i, gap in gaps.items()}
    winner = _clear_winner(gaps, PLACE_MARGIN * size)
    if winner is not None and winner == _clear_winner(inner, EDGE_MARGIN * size):
        found["centre"] = winner
    return found


def _positions(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    found = []
    for noun, members in _comparable(scene):
        for edge, index in _extreme_places(scene, members).items():
            name, superlatives = _EDGES[edge][:2] if edge in _EDGES else _CENTRE
            slots = {"edge": name, "most": _choose(rng, superlatives), "noun": noun}
            found.append(_Candidate("position", slots, (index,)))
    return found


def _references(scene: Scene) -> list[tuple[str, int]]:
    """Noun phrases that fit exactly one shape: "star", "red shape" or "red star"."""
    found = [
        (_noun(attribute, value), members[0])
        for attribute, value, members in _groups(scene, ("form", "colour"))
        if len(members) == 1
    ]
    pairs = Counter((shape.colour, shape.form) for shape in scene.shapes)
    return found + [
        (f"{shape.colour} {shape.form}", index)
        for index, shape in enumerate(scene.shapes)
        if pairs[shape.colour, shape.form] == 1
    ]


def _relations(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    margin = PLACE_MARGIN * scene.image.shape[0]
    everything: list[tuple[str, tuple[int, ...]]] = [("shape", tuple(range(len(scene.shapes))))]
    nouns = everything + [
        (_noun(attribute, value), members)
        for attribute, value, members in _groups(scene, ("form", "colour"))
    ]
    found = []
    for reference, index in _references(scene):
        origin = scene.shapes[index].centre
        for noun, members in nouns:
            others = [i for i in members if i != index]
            for side, axis, sign in _SIDES:
                steps = {i: sign * (scene.shapes[i].centre[axis] - origin[axis]) for i in others}
                beyond = [i for i, step in steps.items() if step > 0]
                if len(beyond) == 1 and min(map(abs, steps.values())) >= margin:
                    slots = {"noun": noun, "side": side, "reference": reference}
                    # Where one shape alone fits the noun, the relation would be idle words.
                    weight = 3.0 if len(others) > 1 else 1.0
                    found.append(_Candidate("relation", slots, (beyond[0],), weight))
    return found


def _countings(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    found = []
    groups = _groups(scene)
    for attribute, value, members in groups:
        counts = [len(other) for name, _, other in groups if name == attribute]
        count = len(members)
        slots = {"attribute": attribute, "noun": _noun(attribute, value)}
        if count == 1:
            found.append(_Candidate("counting:only", slots, members, 0.5))
        if counts.count(count) == 1 and count in _TIMES:
            times = slots | {"times": _TIMES[count]}
            found.append(_Candidate("counting:times", times, members, 2.0))
        if count == max(counts) and counts.count(count) == 1:
            found.append(_Candidate("counting:most", slots, members))
    return found


def _negations(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    found = []
    for attribute, value, members in _groups(scene):
        targets = tuple(i for i in range(len(scene.shapes)) if i not in members)
        quality = value
        if attribute == "form":
            quality = f"a {value}" if len(targets) == 1 else plural(value)
        group = _named(_noun(attribute, value), members)
        slots = {"quality": quality, "group": group}
        found.append(_Candidate("negation:not", slots, targets))
        if len(targets) == 1:
            found.append(_Candidate("negation:only", slots, targets, 4.0))
        if value in _MARKS:
            found.append(_Candidate("negation:without", {"marks": _MARKS[value]}, targets))
    return found


def _clues(
    attribute: str, key: str, table: dict[str, tuple[str, ...]]
) -> Callable[[np.random.Generator, Scene], list[_Candidate]]:
    def make(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
        return [
            _Candidate(key, {"clue": _choose(rng, table[value])}, targets)
            for _, value, targets in _groups(scene, [attribute])
        ]

    return make


def _size_clues(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    extremes = _extreme_sizes(scene, tuple(range(len(scene.shapes))), _visible(scene))
    return [
        _Candidate("size-clue", {"clue": _choose(rng, SIZE_CLUES[name])}, (index,))
        for name, index in extremes.items()
    ]


def _position_clues(rng: np.random.Generator, scene: Scene) -> list[_Candidate]:
    middle = scene.image.shape[0] // 2
    extremes = _extreme_places(scene, tuple(range(len(scene.shapes))))
    # A dart in the centre of the picture hits nothing unless a shape is there.
    return [
        _Candidate("position-clue", {"clue": _choose(rng, POSITION_CLUES[edge])}, (index,))
        for edge, index in extremes.items()
        if edge != "centre" or int(scene.ids[middle, middle]) == index
    ]


_MAKERS: Final[dict[str, Callable[[np.random.Generator, Scene], list[_Candidate]]]] = {
    "colour": _by_attribute("colour", "colour"),
    "shape": _by_attribute("form", "shape"),
    "texture": _by_attribute("texture", "texture"),
    "colour-shape": _two_attributes,
    "size": _sizes,
    "position": _positions,
    "relation": _relations,
    "counting": _countings,
    "negation": _negations,
    "colour-clue": _clues("colour", "colour-clue", COLOUR_CLUES),
    "shape-clue": _clues("form", "shape-clue", FORM_CLUES),
    "size-clue": _size_clues,
    "position-clue": _position_clues,
}


def ask(rng: np.random.Generator, scene: Scene, kinds: Sequence[str], split: str) -> list[Question]:
    """Questions about ``scene``: at most one of each kind, in the order of ``kinds``.

    ``split`` ("train", "val" or "test") selects the wording, which is disjoint between splits;
    see ``trainer.data.synthetic.wording``. Kinds without a clear answer here are left out.

    Raises ValueError for an unknown kind or split.
    """
    check_request(kinds, split)
    questions = []
    for kind in kinds:
        candidates = _MAKERS[kind](rng, scene)
        if not candidates:
            continue
        weights = np.cumsum([candidate.weight for candidate in candidates])
        draw = rng.random() * weights[-1]
        chosen = candidates[int(np.searchsorted(weights, draw, side="right"))]
        sentence = bool(rng.random() < (0.5 if kind in DIRECT else 0.85))
        texts = render(rng, chosen.key, chosen.slots, len(chosen.targets) > 1, split, sentence)
        questions.append(Question(kind, texts, sentence, chosen.targets))
    return questions


def check_request(kinds: Sequence[str], split: str) -> None:
    """Raise ValueError for an unknown kind or split, or for no kind at all."""
    unknown = [kind for kind in kinds if kind not in _MAKERS]
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
        # Small pictures suffice: the texts depend on the arrangement alone.
        scene = draw_scene(rng, 64, smudge=0.0)
        for split in splits:
            for question in ask(rng, scene, kinds, split):
                texts.extend(question.texts)
    return [texts[int(i)] for i in rng.permutation(len(texts))[:n]]


def all_words() -> tuple[str, ...]:
    """Every lower-case word that any text of any split can contain, sorted."""
    sources = [text for split in SPLITS for text in patterns(split)]
    for table in (COLOUR_CLUES, FORM_CLUES, SIZE_CLUES, POSITION_CLUES, _SIZE_WORDS):
        sources += [text for texts in table.values() for text in texts]
    for name, superlatives in [edge[:2] for edge in _EDGES.values()] + [_CENTRE]:
        sources += [name, *superlatives]
    sources += [side for side, *_ in _SIDES] + list(_TIMES.values()) + list(_MARKS.values())
    sources += [*COLOURS, *FORMS, *map(plural, FORMS), *TEXTURES, "colour form texture a"]
    sources += [*agreement(True).values(), *agreement(False).values()]
    return tuple(sorted({word for text in sources for word in tokens(text)}))
