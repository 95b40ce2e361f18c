"""Reads and checks a ReasonSeg annotation file, and the explanations of a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trainer.data.arrays import Size
from trainer.data.findings import Report
from trainer.data.json_fields import LARGEST_FILE, load_json, read_sentence
from trainer.data.polygons import Budget, Polygon, painted_area, read_points

Annotation: TypeAlias = "tuple[tuple[str, ...], bool, tuple[Polygon, ...]]"
"""Texts, whether they are sentences, and polygons."""


@dataclass(frozen=True)
class Explanation:
    """A question that asks for reasons as well, and the answer in words."""

    query: str
    answer: str


def read_annotation(report: Report, size: Size | None) -> Annotation:
    """The valid parts of an annotation; a finding for every error."""
    parsed = load_json(report, dict, "{shapes, text, is_sentence}", LARGEST_FILE)
    if parsed is None:
        return (), False, ()
    text, is_sentence = parsed.get("text"), parsed.get("is_sentence")
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, list) or not listed:
        report.add("text", text, "a list of one string or more", "write the question")
        listed = []
    texts = [read_sentence(report, f"text[{index}]", text) for index, text in enumerate(listed)]
    if not isinstance(is_sentence, bool):
        report.add("is_sentence", is_sentence, "true or false", "correct or add it")
    polygons = _read_shapes(report, parsed.get("shapes"), size)
    sound = tuple(text for text in texts if text is not None)
    return sound, is_sentence is True, tuple(polygons)


def read_explanations(report: Report, known: set[str]) -> dict[str, list[Explanation]]:
    """Explanations by file name of the image, from a file that may be absent."""
    found: dict[str, list[Explanation]] = {}
    entries = load_json(report, list, "a list of objects") if report.path.exists() else None
    for index, entry in enumerate(entries or ()):
        what, fix = f"[{index}]", "correct the entry or take it out"
        fields, keys = entry if isinstance(entry, dict) else {}, ("image", "query", "outputs")
        image, query, answer = (read_sentence(report, f"{what}.{k}", fields.get(k)) for k in keys)
        if image is not None and image not in known:
            # Only names of files in this folder: nothing outside of it can be named.
            report.add(f"{what}.image", image, "the file name of an image of this split", fix)
        elif image is not None and query is not None and answer is not None:
            found.setdefault(image, []).append(Explanation(query, answer))
    return found


def _read_shapes(report: Report, value: object, size: Size | None) -> list[Polygon]:
    """The valid polygons; `flag` shapes are dropped, unchecked."""
    if not isinstance(value, list):
        report.add("shapes", value, "a list of {label, points}", "correct the file")
        return []
    polygons: list[Polygon] = []
    budget = Budget()
    for index, shape in enumerate(value):
        what = f"shapes[{index}]"
        fields = shape if isinstance(shape, dict) else {}
        label = fields.get("label")
        if isinstance(label, str) and label.lower() == "flag":
            continue  # a leftover of the annotation tool, which upstream ignores as well
        if not isinstance(label, str):
            report.add(f"{what}.label", label, "text", "name the shape 'target' or 'ignore'")
        points = read_points(report, f"{what}.points", fields.get("points"))
        if points is None or not isinstance(label, str):
            continue
        if size is not None and not budget.covers(report, f"{what}.points", points, size):
            break
        polygons.append(Polygon(label, points))
        if size is not None and painted_area(polygons[-1], *size) == 0:
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            got = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}, wholly outside"
            allowed = f"some part within width {size[1]}, height {size[0]}"
            report.add(f"{what}.points", got, allowed, "redraw it on the upright picture")
    return polygons
