"""Memory over one training step by component, as a picture that can be read in grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from profiles.measurement import Timeline
from profiles.sizes import GIB

SIZE, LEFT, TOP, BOTTOM, LEGEND = (960, 540), 70, 56, 60, 230
# Dark to light from the bottom up, each with a hatch of its own.
GREYS = (70, 110, 150, 180, 205, 225, 240, 90, 130, 170)
INK, PAPER, LINE = (20, 20, 20), (255, 255, 255), (190, 30, 30)
FIRST = ("frozen weights", "encoders", "adapters", "trained rows", "mask decoder", "other trained",
         "optimizer state", "cuBLAS workspaces", "gradients", "activations kept",
         "transient")  # fmt: skip
LEAST_SHARE = 0.01  # of the peak: smaller components are shown together


def draw(timeline: Timeline, title: str, needs_bytes: int, usable_bytes: int, path: Path) -> None:
    """Write the picture, with the figures of the advice: what is needed of what is usable.

    The step is followed with plain layers. What compiled ones save beyond `needs_bytes` is taken
    off, first from what lives shortest. Raises OSError.
    """
    parts, saved = _within(_parts(timeline), needs_bytes)
    moments = len(next(iter(parts.values())))
    peak = max(sum(sizes[n] for sizes in parts.values()) for n in range(moments))
    top = 1.08 * max(peak, usable_bytes)
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    right, floor = SIZE[0] - LEGEND, SIZE[1] - BOTTOM

    def x(moment: float) -> float:
        return LEFT + (right - LEFT) * moment / moments

    def y(size: float) -> float:
        return floor - (floor - TOP) * size / top

    base = [0] * moments
    for index, (name, sizes) in enumerate(parts.items()):
        upper = [a + b for a, b in zip(base, sizes, strict=True)]
        outline = [(x(n + e), y(upper[n])) for n in range(moments) for e in (0, 1)]
        under = [(x(n + e), y(base[n])) for n in reversed(range(moments)) for e in (1, 0)]
        mask = Image.new("1", SIZE)
        ImageDraw.Draw(mask).polygon(outline + under, fill=1)
        image.paste(_hatched(index), mask=mask)
        pen.line(outline, fill=INK)
        _legend(image, pen, index, f"{name}  {max(sizes) / GIB:.2f}", small)
        base = upper
    for gib in _ticks(top / GIB):
        pen.line([(LEFT - 4, y(gib * GIB)), (LEFT, y(gib * GIB))], fill=INK)
        pen.text((LEFT - 8, y(gib * GIB)), f"{gib:g}", fill=INK, font=small, anchor="rm")
    pen.line([(LEFT, TOP), (LEFT, floor), (right, floor)], fill=INK)
    for number, (moment, name) in enumerate(timeline.phases):
        pen.line([(x(moment), floor), (x(moment), floor + 6)], fill=INK)
        last = number + 1 == len(timeline.phases)
        end = moments if last else timeline.phases[number + 1][0]
        if x(end) - x(moment) > 9 * len(name):
            middle = (x(moment) + x(end)) / 2
            pen.text((middle, floor + 10), name, fill=INK, font=small, anchor="ma")
    pen.line([(LEFT, y(usable_bytes)), (right, y(usable_bytes))], fill=LINE, width=3)
    text = f"usable {usable_bytes / GIB:.2f} GiB"
    pen.text((right - 6, y(usable_bytes) - 4), text, fill=LINE, font=small, anchor="rs")
    pen.text((LEFT, 14), title, fill=INK, font=font)
    text = f"GiB of tensors; with the pool's gaps at most {needs_bytes / GIB:.2f} are needed"
    if saved:
        text += f"; compiled layers save {saved / GIB:.2f}"
    pen.text((LEFT, 34), text, fill=INK, font=small)
    pen.text((right + 14, TOP - 20), "most of each, GiB", fill=INK, font=small)
    image.save(path)  # in the format that the name says


def _within(parts: dict[str, list[int]], most: int) -> tuple[dict[str, list[int]], int]:
    """The components cut to `most` bytes together at every moment, and the most that was cut."""
    cut = {name: list(sizes) for name, sizes in parts.items()}
    saved = 0
    for moment in range(len(next(iter(cut.values())))):
        over = max(0, sum(sizes[moment] for sizes in cut.values()) - most)
        saved = max(saved, over)
        for name in reversed([*cut]):  # the shortest-lived is last
            less = min(over, cut[name][moment])
            cut[name][moment] -= less
            over -= less
    return cut, saved


def _parts(timeline: Timeline) -> dict[str, list[int]]:
    """The components from the bottom up, the small ones together."""
    order = sorted(timeline.parts, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
    peak = max(map(sum, zip(*timeline.parts.values(), strict=True)))
    large = [name for name in order if max(timeline.parts[name]) >= LEAST_SHARE * peak]
    rest = [timeline.parts[name] for name in order if name not in large]
    shown = {name: timeline.parts[name] for name in large}
    if rest:
        shown["others"] = [sum(sizes) for sizes in zip(*rest, strict=True)]
    return shown


def _hatched(index: int) -> Image.Image:
    """A grey for the component of that number, hatched one of five ways."""
    grey = GREYS[index % len(GREYS)]
    image = Image.new("RGB", SIZE, (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    mark = (grey + 60, grey + 60, grey + 60) if grey < 140 else (grey - 60, grey - 60, grey - 60)
    reach = sum(SIZE)
    kind = index % 5
    for n in range(-SIZE[1], reach, 9):
        if kind == 1:
            pen.line([(n, 0), (n + SIZE[1], SIZE[1])], fill=mark)
        if kind in (2, 4):
            pen.line([(0, n), (SIZE[0], n)], fill=mark)
        if kind in (3, 4):
            pen.line([(n, 0), (n, SIZE[1])], fill=mark)
    return image


def _legend(image: Image.Image, pen: ImageDraw.ImageDraw, index: int, text: str, font: Any) -> None:
    left, top = SIZE[0] - LEGEND + 14, TOP + 26 * index
    box = (left, top, left + 24, top + 18)
    image.paste(_hatched(index).crop(box), box)
    pen.rectangle(box, outline=INK)
    pen.text((left + 32, top + 9), text, fill=INK, font=font, anchor="lm")


def _ticks(most: float) -> list[float]:
    step = next(s for s in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50) if most / s <= 10)
    return [round(step * n, 2) for n in range(int(most / step) + 1)]
