"""One's own COCO annotations as drawings: masks traced pixel by pixel, upright.

All instances of a category on a picture are its target. A crowd (`iscrowd`) is ignored for its
category, since nobody outlined what is in it one by one; where an instance lies on it, the instance
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from trainer.data.coco import Coco, CocoImage, CocoMask, paint_parts, read_coco
from trainer.data.drawing import Drawing, called, traced
from trainer.data.encoding import Conventions
from trainer.data.paths import PictureSearch
from trainer.data.reasonseg import IGNORE, TARGET, Finding, Polygon, Report, Size, open_image

Turn: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

LABEL_STUDIO = "Label Studio"  # info.contributor of its exports

# What turns stored pixels upright, by EXIF orientation.
_TURNS: dict[int, Turn] = {
    1: lambda mask: mask,
    2: lambda mask: mask[:, ::-1],
    3: lambda mask: mask[::-1, ::-1],
    4: lambda mask: mask[::-1],
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: mask[::-1, ::-1].T,
    8: np.rot90,
}


def read_drawings(
    path: Path,
    search: PictureSearch,
    findings: list[Finding],
    conventions: Conventions | None = None,
) -> Iterator[Drawing]:
    """The pictures whose annotations are sound; a finding for all that is not."""
    report = Report(path, findings)
    conventions = conventions or Conventions()
    notes = read_coco(report, conventions.text)
    marks: dict[int, list[CocoMask]] = {number: [] for number in notes.images}
    for mask in (*notes.masks.values(), *notes.unusable.values()):
        if mask.crowd and not mask.grouped:
            # CVAT and Datumaro mark whatever was painted as a crowd; they write attributes too.
            conventions.assume("painted annotations with iscrowd 1 read as objects, as CVAT means")
            mask = replace(mask, crowd=False)
        marks[mask.image].append(mask)
    search.told(image.file_name for image in notes.images.values())
    for number, image in notes.images.items():
        what = f"{image.place}.file_name"
        placed = search.find(report, what, image.file_name)
        if placed is None:
            continue
        picture, pictures = placed
        entry = f"{path}: {image.place}"
        opened = open_image(Report(picture, findings, entry), _orientation)
        turn = opened and _turn(report, image, notes.tool, conventions, *opened)
        if turn:
            outlined = _outlined(report, marks[number], notes, image, turn)
            yield Drawing(called(picture, pictures), picture, path, outlined)


def _orientation(image: Image.Image) -> int:
    """Its EXIF orientation, once it is known to be whole; 1 is upright."""
    given = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()
    return given if given in range(2, 9) else 1


def _turn(
    report: Report, image: CocoImage, tool: str, conventions: Conventions, upright: Size,
    orientation: int,
) -> Turn | None:  # fmt: skip
    """What turns a mask of the annotated size upright; None with a finding added.

    COCO's own annotations are in stored pixels, some tools' in upright ones: the size tells which,
    or the user does. Label Studio gives the stored size, but parts of the upright picture: its
    converter multiplies per cent of what the annotator saw by the stored width and height.
    Where nothing tells, as for a picture that is upside down, nothing is guessed.
    """
    what, told = image.place, image.size
    stored = upright[::-1] if orientation >= 5 else upright
    frame = conventions.frame
    if frame is None and orientation != 1 and tool == LABEL_STUDIO and told in (stored, upright):
        conventions.assume("turned pictures' outlines read as upright, as Label Studio draws them")
        return lambda mask: cv2.resize(mask, upright[::-1], interpolation=cv2.INTER_NEAREST)
    if frame == "upright" and told == upright:
        return _TURNS[1]
    if frame == "stored" and told == stored:
        return _TURNS[orientation]
    if told == upright and (orientation == 1 or stored != upright):
        return _TURNS[1]
    if told == stored and stored != upright:
        return _TURNS[orientation]
    if told == upright:
        allowed = "a size that tells whether masks are of the picture as stored or upright"
        got = f"{told} for a picture with EXIF orientation {orientation}"
        fix = "say which with --frame stored or --frame upright"
    else:
        allowed, got = f"{upright}, the picture's", f"{told}"
        fix = "name the very picture that was annotated"
    report.add(f"{what}.(height, width)", got, allowed, fix)
    return None


def _outlined(
    report: Report, marks: list[CocoMask], notes: Coco, image: CocoImage, turn: Turn
) -> dict[str, tuple[Polygon, ...]]:
    """The traced target and ignored regions of each category that has an instance."""
    together: dict[str, list[CocoMask]] = {}
    for one in marks:
        label = notes.categories[one.category].replace(":", " ")
        together.setdefault(label, []).append(one)
    outlined = {}
    unusable = {one.place for one in notes.unusable.values()}
    for label, those in together.items():  # one after the other: a mask has the picture's size
        regions, all_told = np.zeros(image.size, np.uint8), True
        for one in sorted(those, key=lambda one: not one.crowd):
            mask = paint_parts(one.parts, image, report.path, *image.size).astype(bool)
            regions[mask] = IGNORE if one.crowd else TARGET
            if one.place in unusable:
                pass  # told when it was read
            elif not mask.any():
                allowed = f"some part within width {image.size[1]}, height {image.size[0]}"
                fix = "export the annotation again or take it out"
                report.add(f"{one.place}.segmentation", "no pixel of the picture", allowed, fix)
            if not mask.any():  # if it is left out, nobody knows what in its box is the answer
                all_told &= one.box is not None
                boxed = paint_parts(one.box or (), image, report.path, *image.size).astype(bool)
                regions[boxed & (regions == 0)] = IGNORE
        if TARGET in regions and all_told:
            outlined[label] = traced(turn(regions))
    return outlined
