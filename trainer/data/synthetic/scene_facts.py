"""Facts about a scene that hold by a margin: shared attributes, extremes of size and place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from trainer.data.synthetic.scenes import Scene, extent

SIZE_MARGIN: Final = 1.25  # ratio of radii
PLACE_MARGIN: Final = 0.06  # of the picture's side, between centres
EDGE_MARGIN: Final = 0.03  # of the picture's side, between outlines
# Edge: its name in a question, its superlatives, index into `extent`, and sign of the order.
EDGES: Final[dict[str, tuple[str, tuple[str, ...], int, int]]] = {
    "left": ("left side", ("leftmost",), 0, 1),
    "top": ("top", ("topmost", "highest"), 1, 1),
    "right": ("right side", ("rightmost",), 2, -1),
    "bottom": ("bottom", ("bottommost", "lowest"), 3, -1),
}
Group = tuple[str, str, tuple[int, ...]]  # attribute, its value, the shapes that have it


def groups_of(
    scene: Scene, attributes: Iterable[str] = ("colour", "form", "texture")
) -> list[Group]:
    """Every value seen of every attribute, unless all shapes share it."""
    found: list[Group] = []
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


def noun_of(attribute: str, value: str) -> str:
    """The noun phrase for shapes with this attribute, such as "star" or "red shape"."""
    return value if attribute == "form" else f"{value} shape"


def comparable(scene: Scene) -> list[tuple[str, tuple[int, ...]]]:
    """What can be compared: all shapes, and those that share a form or a colour."""
    everything = ("shape", tuple(range(len(scene.shapes))))
    return [everything] + [
        (noun_of(attribute, value), members)
        for attribute, value, members in groups_of(scene, ("form", "colour"))
        if len(members) > 1
    ]


def visible_areas(scene: Scene) -> list[int]:
    """The visible area of every shape in px."""
    return [int(n) for n in np.bincount(scene.ids.ravel() + 1, minlength=len(scene.shapes) + 1)[1:]]


def extreme_sizes(scene: Scene, members: tuple[int, ...], visible: list[int]) -> dict[str, int]:
    """The clearly largest and smallest of ``members``, both by whole and by visible area."""
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


def _clear_winner(values: dict[int, float], margin: float) -> int | None:
    """The key of the smallest value if it is smaller than the next by ``margin``."""
    ranked = sorted(values, key=values.__getitem__)
    if len(ranked) < 2 or values[ranked[1]] - values[ranked[0]] < margin:
        return None
    return ranked[0]


def extreme_places(scene: Scene, members: tuple[int, ...]) -> dict[str, int]:
    """The clearly leftmost ... of ``members``, and that nearest to the picture's centre.

    Centres and outlines must agree, so that both ways of measuring give the same answer.
    """
    size = scene.image.shape[0]
    extents = {i: extent(scene.shapes[i]) for i in members}
    found = {}
    for edge, (_, _, side, sign) in EDGES.items():
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


def references(scene: Scene) -> list[tuple[str, int]]:
    """Noun phrases that fit exactly one shape: "star", "red shape" or "red star"."""
    found = [
        (noun_of(attribute, value), members[0])
        for attribute, value, members in groups_of(scene, ("form", "colour"))
        if len(members) == 1
    ]
    pairs = Counter((shape.colour, shape.form) for shape in scene.shapes)
    return found + [
        (f"{shape.colour} {shape.form}", index)
        for index, shape in enumerate(scene.shapes)
        if pairs[shape.colour, shape.form] == 1
    ]
