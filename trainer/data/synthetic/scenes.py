"""Seeded pictures of coloured shapes, for the synthetic ReasonSeg data set and for pretraining.

Only numpy and Pillow are needed, so that pretraining can draw scenes on a machine without
OpenCV.  One scene of 256 x 256 px takes a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (218, 38, 38),
    "orange": (246, 138, 22),
    "yellow": (242, 224, 50),
    "green": (48, 176, 66),
    "blue": (48, 100, 232),
    "purple": (142, 54, 196),
    "pink": (248, 148, 198),
    "white": (240, 240, 240),
}
FORMS: Final[tuple[str, ...]] = ("circle", "square", "triangle", "star", "hexagon", "cross")
TEXTURES: Final[tuple[str, ...]] = ("plain", "striped", "dotted")
LAYOUTS: Final[tuple[str, ...]] = ("random", "odd-colour", "odd-form", "odd-texture")

ODD_PROBABILITY: Final = 0.3
RADII: Final[tuple[float, float]] = (0.062, 0.15)  # of the picture's side
MINIMUM_VISIBLE: Final = 0.6  # of a shape's own area
MINIMUM_PIXELS: Final = 300 / 256**2  # of the picture's area
GRAIN: Final = 15  # the noise on each channel is 0..GRAIN; a number of the form 2**n - 1
BRIGHTEST: Final = 255 - GRAIN
MARGIN: Final = 2  # px between a shape and the edge of the picture
SMUDGE_LIMIT: Final = 0.3  # of the visible area of a shape that a smudge may cover


@dataclass(frozen=True)
class Shape:
    """One shape.  ``centre`` is (x, y) in px.

    ``radius`` (px) is that of the circle of the same area: "larger" then means the same for
    shapes of different forms.  ``area`` is the number of pixels of the whole shape, hidden ones
    included; ``rotation`` is in radians.
    """

    form: str
    colour: str
    texture: str
    centre: tuple[float, float]
    radius: float
    rotation: float
    area: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture with its truth.

    ``image`` is uint8 [H, W, 3]; ``ids`` is int16 [H, W], the index into ``shapes`` of what is
    seen at each pixel, -1 on the background; ``ignore`` is bool [H, W] where a smudge makes the
    picture unreadable (``ids`` keeps the values underneath), or None.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.int16]
    shapes: tuple[Shape, ...]
    ignore: NDArray[np.bool_] | None = None


class _Patch(NamedTuple):
    """A drawn shape: its place in the picture and its coverage (uint8 [h, w], 255 = inside)."""

    box: tuple[slice, slice]
    cover: NDArray[np.uint8]


def _ring(angles: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([lengths * np.sin(angles), -lengths * np.cos(angles)], axis=1)


def _outline(form: str) -> NDArray[np.float64]:
    """Vertices [n, 2] of a form about the origin, scaled to the area of a circle of radius 1."""
    if form == "cross":
        a, b = 0.36, 1.0
        points = np.array(
            [
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ]
        )
    elif form == "star":
        points = _ring(np.arange(10) * np.pi / 5, np.tile([1.0, 0.46], 5))
    else:
        corners = {"triangle": 3, "square": 4, "hexagon": 6}[form]
        points = _ring(np.arange(corners) * 2 * np.pi / corners, np.ones(corners))
    after = np.roll(points, -1, axis=0)
    area = abs(np.sum(points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0])) / 2
    return np.asarray(points * np.sqrt(np.pi / area), dtype=np.float64)


_OUTLINES: Final = {form: _outline(form) for form in FORMS if form != "circle"}
_REACH: Final = {form: float(np.hypot(*points.T).max()) for form, points in _OUTLINES.items()}


def reach(form: str, radius: float) -> float:
    """Distance in px from the centre to the farthest point of a shape of this ``radius``."""
    return radius * _REACH.get(form, 1.0)


def _vertices(shape: Shape) -> NDArray[np.float64]:
    """Vertices [n, 2] in px of a shape that is no circle, about its centre."""
    cos, sin = np.cos(shape.rotation), np.sin(shape.rotation)
    turn = np.array([[cos, sin], [-sin, cos]]) * shape.radius
    return np.asarray(_OUTLINES[shape.form] @ turn, dtype=np.float64)


def extent(shape: Shape) -> tuple[float, float, float, float]:
    """The whole shape's left, top, right and bottom in px of the picture."""
    x, y = shape.centre
    if shape.form == "circle":
        return x - shape.radius, y - shape.radius, x + shape.radius, y + shape.radius
    points = _vertices(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    return x + float(low[0]), y + float(low[1]), x + float(high[0]), y + float(high[1])


def _cover(shape: Shape) -> _Patch:
    """Draw the shape alone, at twice the size so that its border comes out smooth."""
    far = reach(shape.form, shape.radius)
    x, y = shape.centre
    left, top = int(x - far) - 1, int(y - far) - 1
    side = int(2 * far) + 4
    canvas = Image.new("L", (2 * side, 2 * side))
    pen = ImageDraw.Draw(canvas)
    middle = np.array([x - left, y - top])
    if shape.form == "circle":
        low, high = 2 * (middle - shape.radius), 2 * (middle + shape.radius)
        pen.ellipse([*low.tolist(), *high.tolist()], fill=255)
    else:
        pen.polygon((2 * (_vertices(shape) + middle)).ravel().tolist(), fill=255)
    box = (slice(top, top + side), slice(left, left + side))
    return _Patch(box, np.asarray(canvas.reduce(2)))


def is_one_piece(mask: NDArray[np.bool_]) -> bool:
    """Whether ``mask`` (bool [h, w]) has Euler number 1 with 4 and with 8 neighbours.

    Counted over 2 x 2 windows.  Pieces minus holes is 1 then; a mask that is known to have no
    hole is one piece, with no spot where it is connected by a corner only.
    """
    cells = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.int8)
    cells[1:-1, 1:-1] = mask
    total = cells[:-1, :-1] + cells[1:, :-1] + cells[:-1, 1:] + cells[1:, 1:]
    diagonal = (total == 2) & (cells[:-1, :-1] == cells[1:, 1:])
    quads = int(np.count_nonzero(total == 1)) - int(np.count_nonzero(total == 3))
    return quads == 4 and not diagonal.any()


def _texture_shade(shape: Shape, side: tuple[int, int], size: int) -> NDArray[np.float32]:
    """Brightness factor, broadcastable to [h, w, 1]: darker where a stripe or a dot is."""
    if shape.texture == "plain":
        return np.ones((1, 1, 1), np.float32)
    # The pattern turns with the shape, so that its direction says nothing about its form.
    angle = shape.rotation * 2.3 + 0.4
    period = 2 * np.pi / max(4.0, 0.036 * size)
    cos, sin = np.cos(angle) * period, np.sin(angle) * period
    ys = np.arange(side[0], dtype=np.float32)[:, None]
    xs = np.arange(side[1], dtype=np.float32)[None, :]
    along = np.sin((xs * cos + ys * sin).astype(np.float32))
    if shape.texture == "striped":
        dark = along > 0.15
    else:
        dark = along * np.sin((ys * cos - xs * sin).astype(np.float32)) > 0.32
    return np.where(dark, np.float32(0.42), np.float32(1.0))[:, :, None]


def _paint(rng: np.random.Generator, image: NDArray[np.uint8], shape: Shape, patch: _Patch) -> None:
    jitter = rng.uniform(-10, 10, 3)
    colour = np.clip(np.array(COLOURS[shape.colour]) + jitter, 0, 255).astype(np.float32)
    shade = _texture_shade(shape, patch.cover.shape, image.shape[0])
    # A faint gradient over the shape: a flat colour would be too easy to recognise.
    ramp = np.linspace(1.06, 0.9, patch.cover.shape[0], dtype=np.float32)[:, None, None]
    alpha = patch.cover[:, :, None].astype(np.float32) / 255
    under = image[patch.box].astype(np.float32)
    mixed = under + alpha * (np.minimum(colour * shade * ramp, BRIGHTEST) - under)
    image[patch.box] = mixed.astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A dim gradient with a faint pattern, uint8 [size, size, 3], at most about 115 bright."""
    base = rng.uniform(30, 70, 3)
    slope_x, slope_y = rng.uniform(-15, 15, (2, 3))
    line = np.linspace(-1, 1, size)
    strength, frequency = rng.uniform(2, 7), rng.uniform(6, 40)
    wave = strength * np.sin(line * frequency + rng.uniform(0, 6))
    flat = np.ones(size)
    pattern = int(rng.integers(4))
    down, across = ((wave, flat), (flat, wave), (wave, np.sign(wave)), (flat, 0 * flat))[pattern]
    # A product of two thin matrices: several times as fast as adding broadcast pictures.
    left = np.stack([flat, line, down], axis=1).astype(np.float32)
    right = np.stack(
        [
            base + line[:, None] * slope_x,
            np.tile(slope_y, (size, 1)),
            np.tile(across[:, None], (1, 3)),
        ]
    ).astype(np.float32)
    picture = left @ right.reshape(3, size * 3)
    return picture.astype(np.uint8).reshape(size, size, 3)


def _attributes(rng: np.random.Generator, count: int, layout: str) -> list[tuple[str, str, str]]:
    """(form, colour, texture) of each shape.

    Drawn from few values each, so that shapes share attributes and one word is seldom enough
    to tell the target.  In an odd-one-out layout all but one share an attribute.
    """

    def draw(values: tuple[str, ...], low: int, high: int) -> list[str]:
        few = rng.permutation(len(values))[: int(rng.integers(low, high + 1))]
        return [values[few[i]] for i in rng.integers(0, len(few), count)]

    columns = [draw(FORMS, 2, 4), draw(tuple(COLOURS), 2, 5), draw(TEXTURES, 1, 3)]
    if layout != "random":
        which = LAYOUTS.index(layout) - 1
        column = (1, 0, 2)[which]
        values = (FORMS, tuple(COLOURS), TEXTURES)[column]
        common, odd = rng.permutation(len(values))[:2]
        # The odd one is placed first, so it always has room.
        columns[column] = [values[odd]] + [values[common]] * (count - 1)
    return list(zip(*columns, strict=True))


def _fits(shape: Shape, others: list[Shape], overlap: bool) -> bool:
    """Cheap test on circles: no contact, or (``overlap``) only a small overlap at the border."""
    far = reach(shape.form, shape.radius)
    for other in others:
        gap = float(np.hypot(shape.centre[0] - other.centre[0], shape.centre[1] - other.centre[1]))
        apart = far + reach(other.form, other.radius)
        if gap < (0.62 * apart if overlap else apart + MARGIN):
            return False
    return True


def _stamp(
    ids: NDArray[np.int16], patch: _Patch, shapes: list[Shape], boxes: list[tuple[slice, slice]]
) -> int:
    """Write a new shape into ``ids``; its area in px, or 0 (``ids`` unchanged) if it must not be.

    What is hidden must leave every older shape in one piece, without holes and visible enough.
    No hole can arise if the new shape, itself one piece, also lies outside the older one: the
    outside and the hidden part are then connected.
    """
    mask = patch.cover >= 128
    window = ids[patch.box]
    under = window[mask]
    least = MINIMUM_PIXELS * ids.size
    if under.size < least or not is_one_piece(mask):
        return 0
    hidden = [int(i) for i in np.unique(under) if i >= 0]
    before = window.copy()
    window[mask] = len(shapes)
    for index in hidden:
        seen = ids[boxes[index]] == index
        enough = max(MINIMUM_VISIBLE * shapes[index].area, least)
        inside = not np.any(under != index)
        if inside or np.count_nonzero(seen) < enough or not is_one_piece(seen):
            window[...] = before
            return 0
    return int(under.size)


def _place(
    rng: np.random.Generator, image: NDArray[np.uint8], count: int, layout: str, scale: float
) -> tuple[NDArray[np.int16], list[Shape]]:
    """Draw up to ``count`` shapes into ``image`` (in place); a shape without room is left out."""
    size = image.shape[0]
    ids = np.full((size, size), -1, dtype=np.int16)
    shapes: list[Shape] = []
    boxes: list[tuple[slice, slice]] = []
    low, high = np.log(RADII)
    radii = np.exp(rng.uniform(low, high, count)) * size * scale
    for (form, colour, texture), radius in zip(_attributes(rng, count, layout), radii, strict=True):
        edge = reach(form, float(radius)) + MARGIN + 2
        overlap = bool(rng.random() < 0.35)
        rotation = float(rng.uniform(0, 2 * np.pi))
        for x, y in rng.uniform(edge, size - edge, (16, 2)).tolist():
            shape = Shape(form, colour, texture, (x, y), float(radius), rotation)
            if not _fits(shape, shapes, overlap):
                continue
            patch = _cover(shape)
            area = _stamp(ids, patch, shapes, boxes)
            if area:
                _paint(rng, image, shape, patch)
                shapes.append(replace(shape, area=area))
                boxes.append(patch.box)
                break
    return ids, shapes


def _smudge(
    rng: np.random.Generator, image: NDArray[np.uint8], ids: NDArray[np.int16]
) -> NDArray[np.bool_] | None:
    """Blur and dirty an ellipse of ``image`` (in place); its mask bool [H, W], None if no room.

    A spot is refused where it would hide much of a shape.  It is always smaller than any shape
    it touches, because readers of ReasonSeg paint large regions first: the ignored spot then
    ends up on top of the target.
    """
    size = image.shape[0]
    line = np.arange(size, dtype=np.float32)
    seen = np.bincount(ids[ids >= 0])
    for _ in range(4):
        width, height = rng.uniform(0.03, 0.08, 2) * size
        x, y = rng.uniform(0.1, 0.9, 2) * size
        mask = ((line[None, :] - x) / width) ** 2 + ((line[:, None] - y) / height) ** 2 <= 1
        under = ids[mask]
        touched = np.bincount(under[under >= 0], minlength=len(seen))
        if np.any(touched > SMUDGE_LIMIT * seen) or np.any(seen[touched > 0] <= 1.2 * under.size):
            continue
        # Blurring the neighbourhood alone is several times as fast as blurring the picture.
        box = (
            slice(max(0, int(y - height) - 1), int(y + height) + 2),
            slice(max(0, int(x - width) - 1), int(x + width) + 2),
        )
        blurred = Image.fromarray(image[box]).filter(ImageFilter.BoxBlur(size / 32))
        dirt = rng.integers(-45, 46, (under.size, 1))
        spot = np.clip(np.asarray(blurred)[mask[box]] + dirt, 0, BRIGHTEST)
        image[mask] = spot.astype(np.uint8)
        return np.asarray(mask, dtype=np.bool_)
    return None


def draw_scene(
    rng: np.random.Generator,
    size: int = 256,
    *,
    minimum: int = 3,
    maximum: int = 6,
    layout: str | None = None,
    smudge: float = 0.25,
) -> Scene:
    """Draw one scene of ``size`` x ``size`` px with ``minimum``..``maximum`` shapes.

    ``layout`` is one of ``LAYOUTS``; None draws an odd-one-out layout with probability
    ``ODD_PROBABILITY``.  ``smudge`` is the probability of trying for an ignored spot.  Every
    visible region is one piece without holes, at least ``MINIMUM_VISIBLE`` of its shape.  The
    same state of ``rng`` gives the same scene.

    Raises ValueError for an unusable argument.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: use one of {', '.join(LAYOUTS)} or None")
    if size < 48 or not 1 <= minimum <= maximum <= 10:
        raise ValueError(
            f"need size >= 48 and 1 <= minimum <= maximum <= 10, got size={size}, "
            f"minimum={minimum}, maximum={maximum}"
        )
    if layout is None:
        odd = rng.random() < ODD_PROBABILITY
        layout = LAYOUTS[int(rng.integers(1, len(LAYOUTS)))] if odd else "random"
    ground = _background(rng, size)
    attempt = 0
    while True:
        image = ground.copy()
        count = int(rng.integers(minimum, maximum + 1))
        # Somewhat smaller shapes after each failure, so that crowded requests succeed as well.
        ids, shapes = _place(rng, image, count, layout, max(0.75, 0.97**attempt))
        if len(shapes) >= minimum:
            break
        attempt += 1
    ignore = _smudge(rng, image, ids) if rng.random() < smudge else None
    # No value exceeds BRIGHTEST so far, so the sum cannot overflow and needs no clipping.
    grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape) & GRAIN
    return Scene(image + grain, ids, tuple(shapes), ignore)
