"""Candidate questions about a scene, kind by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.data.synthetic.scene_facts import (
    EDGES,
    PLACE_MARGIN,
    comparable,
    extreme_places,
    extreme_sizes,
    groups_of,
    noun_of,
    references,
    visible_areas,
)
from trainer.data.synthetic.scenes import Scene
from trainer.data.synthetic.wording import (
    COLOUR_CLUES,
    FORM_CLUES,
    POSITION_CLUES,
    SIZE_CLUES,
    plural,
)

TIMES: Final = {1: "once", 2: "twice", 3: "three times", 4: "four times"}
SIDES: Final = (
    ("to the left of", 0, -1),
    ("to the right of", 0, 1),
    ("above", 1, -1),
    ("below", 1, 1),
)
SIZE_WORDS: Final = {"largest": ("largest", "biggest"), "smallest": ("smallest",)}
CENTRE: Final = ("centre", ("most central",))
MARKS: Final = {"striped": "stripes", "dotted": "dots"}


@dataclass(frozen=True)
class Candidate:
    """A possible question: a key of ``wording.PHRASES``, its placeholders, the answer."""

    key: str
    slots: dict[str, str]
    targets: tuple[int, ...]
    weight: float = 1.0


def _named(noun: str, targets: tuple[int, ...]) -> str:
    return plural(noun) if len(targets) > 1 else noun


def _choose(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _by_attribute(
    attribute: str, key: str
) -> Callable[[np.random.Generator, Scene], list[Candidate]]:
    def make(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
        return [
            Candidate(key, {attribute: value, "noun": _named(value, targets)}, targets)
            for _, value, targets in groups_of(scene, [attribute])
        ]

    return make


def _two_attributes(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    found = []
    for first in ("colour", "texture"):
        pairs = Counter((getattr(shape, first), shape.form) for shape in scene.shapes)
        for adjective, form in pairs:
            adjectives = {i for i, s in enumerate(scene.shapes) if getattr(s, first) == adjective}
            forms = {i for i, s in enumerate(scene.shapes) if s.form == form}
            targets = tuple(sorted(adjectives & forms))
            if len(targets) == len(scene.shapes):
                continue
            # Ask less often what one of the two words already answers.
            hard = set(targets) not in (adjectives, forms)
            weight = (4.0 if hard else 1.0) * (3.0 if first == "colour" else 1.0)
            slots = {"adjective": adjective, "form": form, "noun": _named(form, targets)}
            found.append(Candidate("colour-shape", slots, targets, weight))
    return found


def _sizes(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    visible = visible_areas(scene)
    return [
        Candidate("size", {"most": _choose(rng, SIZE_WORDS[name]), "noun": noun}, (index,))
        for noun, members in comparable(scene)
        for name, index in extreme_sizes(scene, members, visible).items()
    ]


def _positions(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    found = []
    for noun, members in comparable(scene):
        for edge, index in extreme_places(scene, members).items():
            name, superlatives = EDGES[edge][:2] if edge in EDGES else CENTRE
            slots = {"edge": name, "most": _choose(rng, superlatives), "noun": noun}
            found.append(Candidate("position", slots, (index,)))
    return found


def _relations(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    margin = PLACE_MARGIN * scene.image.shape[0]
    everything: list[tuple[str, tuple[int, ...]]] = [("shape", tuple(range(len(scene.shapes))))]
    nouns = everything + [
        (noun_of(attribute, value), members)
        for attribute, value, members in groups_of(scene, ("form", "colour"))
    ]
    found = []
    for reference, index in references(scene):
        origin = scene.shapes[index].centre
        for noun, members in nouns:
            others = [i for i in members if i != index]
            for side, axis, sign in SIDES:
                steps = {i: sign * (scene.shapes[i].centre[axis] - origin[axis]) for i in others}
                beyond = [i for i, step in steps.items() if step > 0]
                if len(beyond) == 1 and min(map(abs, steps.values())) >= margin:
                    slots = {"noun": noun, "side": side, "reference": reference}
                    # If only one shape fits the noun, the relation adds nothing.
                    weight = 3.0 if len(others) > 1 else 1.0
                    found.append(Candidate("relation", slots, (beyond[0],), weight))
    return found


def _countings(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    found = []
    groups = groups_of(scene)
    for attribute, value, members in groups:
        counts = [len(other) for name, _, other in groups if name == attribute]
        count = len(members)
        slots = {"attribute": attribute, "noun": noun_of(attribute, value)}
        if count == 1:
            found.append(Candidate("counting:only", slots, members, 0.5))
        if counts.count(count) == 1 and count in TIMES:
            times = slots | {"times": TIMES[count]}
            found.append(Candidate("counting:times", times, members, 2.0))
        if count == max(counts) and counts.count(count) == 1:
            found.append(Candidate("counting:most", slots, members))
    return found


def _negations(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    found = []
    for attribute, value, members in groups_of(scene):
        targets = tuple(i for i in range(len(scene.shapes)) if i not in members)
        quality = value
        if attribute == "form":
            quality = f"a {value}" if len(targets) == 1 else plural(value)
        group = _named(noun_of(attribute, value), members)
        slots = {"quality": quality, "group": group}
        found.append(Candidate("negation:not", slots, targets))
        if len(targets) == 1:
            found.append(Candidate("negation:only", slots, targets, 4.0))
        if value in MARKS:
            found.append(Candidate("negation:without", {"marks": MARKS[value]}, targets))
    return found


def _clues(
    attribute: str, key: str, table: dict[str, tuple[str, ...]]
) -> Callable[[np.random.Generator, Scene], list[Candidate]]:
    def make(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
        return [
            Candidate(key, {"clue": _choose(rng, table[value])}, targets)
            for _, value, targets in groups_of(scene, [attribute])
        ]

    return make


def _size_clues(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    extremes = extreme_sizes(scene, tuple(range(len(scene.shapes))), visible_areas(scene))
    return [
        Candidate("size-clue", {"clue": _choose(rng, SIZE_CLUES[name])}, (index,))
        for name, index in extremes.items()
    ]


def _position_clues(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    middle = scene.image.shape[0] // 2
    extremes = extreme_places(scene, tuple(range(len(scene.shapes))))
    # A dart in the centre of the picture hits nothing unless a shape is there.
    return [
        Candidate("position-clue", {"clue": _choose(rng, POSITION_CLUES[edge])}, (index,))
        for edge, index in extremes.items()
        if edge != "centre" or int(scene.ids[middle, middle]) == index
    ]


MAKERS: Final[dict[str, Callable[[np.random.Generator, Scene], list[Candidate]]]] = {
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
