"""What tools leave open in COCO files: crowds, traced outlines, and which way up pictures were."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeGuard

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from trainer.data.arrays import FloatArray, Size
from trainer.data.findings import Report
from trainer.data.formats.coco import SUPERVISION, CocoEntry, CocoImage, CocoMask
from trainer.data.formats.coco_masks import Part
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.label_studio import TASKS
from trainer.data.importing.outlines import possible_frames
from trainer.data.importing.sa2va import ANNOTATIONS
from trainer.data.importing.yolo import LABELS

PixelTransform: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
# info.contributor of Label Studio's exports: COCO, and Brush labels to COCO.
LABEL_STUDIO, BRUSH = "Label Studio", "Label Studio Converter"
_TRACING = SUPERVISION, BRUSH  # tools that make polygons of painted masks
# Turns stored pixels upright, by EXIF orientation.
TO_UPRIGHT: dict[int, PixelTransform] = {
    1: lambda mask: mask,
    2: lambda mask: mask[:, ::-1],
    3: lambda mask: mask[::-1, ::-1],
    4: lambda mask: mask[::-1],
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: mask[::-1, ::-1].T,
    8: np.rot90,
}


def is_crowd(mask: CocoEntry, conventions: Conventions) -> bool:
    """Whether `iscrowd` 1 means a crowd, as in COCO, or a painted object.

    CVAT, Datumaro and supervision set it for objects whose outline is not a polygon, and record no
    difference. So the user's option overrides the guess.
    """
    if not mask.crowd:
        return False
    if conventions.iscrowd is not None:
        return conventions.iscrowd == "crowd"
    if mask.grouped:
        conventions.assume("annotations with iscrowd 1 left out of the answers, as crowds; if they "
                           "are objects: --iscrowd object")  # fmt: skip
    else:
        conventions.assume(
            "annotations with iscrowd 1 read as objects, as CVAT and others mark what was painted; "
            "if they are crowds: --iscrowd crowd"
        )
    return mask.grouped


def is_drawn_upright(tool: str, image: CocoImage, upright: Size, conventions: Conventions) -> bool:
    """Whether outlines on a turned picture are fractions of the upright one, whatever its size.

    Label Studio's converter multiplies percentages of what the annotator saw by the stored width
    and height, or, if it did not find the picture, by those of the upright one.
    """
    known = tool == LABEL_STUDIO and image.size == upright[::-1]
    known |= tool in (LABEL_STUDIO, BRUSH, TASKS) and image.size == upright
    if not known or conventions.frame is not None:
        return False
    conventions.assume("rotated pictures' outlines read as upright, as Label Studio draws them")
    return True


def frame_of(tool: str, orientation: int, conventions: Conventions) -> str | None:
    """The frame of a turned picture's outlines, if the user or the tool's own reader says it."""
    if orientation == 1 or conventions.frame is not None:
        return conventions.frame
    if tool == LABELS:
        conventions.assume("rotated pictures' outlines read as drawn on the picture upright, as "
                           "Ultralytics opens it; if they are not: --frame stored")  # fmt: skip
        return "upright"
    if tool != ANNOTATIONS:
        return None
    conventions.assume("rotated pictures' outlines read as drawn on the picture as stored, as "
                       "Sa2VA reads them; if they are not: --frame upright")  # fmt: skip
    return "stored"


def filled(mask: CocoMask, image: CocoImage, tool: str) -> CocoMask:
    """The mask, with run lengths for outlines traced through the centres of border pixels.

    supervision and Label Studio's brush trace so, with OpenCV's findContours; painted as COCO's
    polygons such masks would lose a row and a column.
    """
    if tool not in _TRACING or not any(_is_traced(part, tool) for part in mask.parts):
        return mask
    region = np.zeros(image.size, np.uint8)
    for part in mask.parts:
        if _is_traced(part, tool):
            cv2.fillPoly(region, [part.reshape(-1, 2).astype(np.int32)], 1)
    rest = tuple(part for part in mask.parts if not _is_traced(part, tool))
    return mask._replace(parts=(*rest, coco_mask.encode(np.asfortranarray(region))))


def _is_traced(part: Part, tool: str) -> TypeGuard[FloatArray]:
    """Whether a polygon was traced from a mask: it has whole numbers only.

    Label Studio rounds clicked points to whole numbers as well. There a traced polygon has only
    horizontal, vertical and diagonal edges, with at least one diagonal.
    """
    if isinstance(part, dict) or (part % 1).any():
        return False
    points = part.reshape(-1, 2)
    across, down = np.abs(np.roll(points, -1, axis=0) - points).T
    diagonal = (across == down) & (across > 0)
    straight = (across == 0) | (down == 0)
    return tool == SUPERVISION or bool((diagonal | straight).all() and diagonal.any())


def stretched(report: Report, mask: CocoMask, annotated: Size, upright: Size) -> CocoMask | None:
    """The mask with polygons in pixels of the upright picture; a rectangle's box already is.

    None with a finding added for run lengths: they have the annotated size and cannot be stretched.
    """
    if annotated == upright:
        return mask
    stretch = np.array([upright[1] / annotated[1], upright[0] / annotated[0]])
    parts = []
    for part in mask.parts:
        if isinstance(part, dict):
            got = f"run lengths of size {list(annotated)} for a picture of {list(upright)}, upright"
            allowed = "on a rotated picture only polygons, as Label Studio exports them to COCO"
            fix = "export as JSON instead, or say --frame stored if no outline is upright"
            report.add(mask.place, got, allowed, fix)
            return None
        parts.append((part.reshape(-1, 2) * stretch).ravel())
    return mask._replace(parts=tuple(parts))


def to_upright(
    report: Report, image: CocoImage, frame: str | None, upright: Size, orientation: int
) -> PixelTransform | None:
    """The transform that turns a mask of the annotated size upright; None with a finding added.

    COCO's own annotations are in stored pixels, those of some tools in upright ones: the size
    decides, or the user's `frame`. Without either, as for an upside-down picture, it is an error.
    """
    what, annotated = image.place, image.size
    fits = possible_frames(annotated, upright, orientation)
    named = fits[0] if len(fits) == 1 else frame
    if fits and named:
        return TO_UPRIGHT[1 if named == "upright" else orientation]
    if fits:
        allowed = "a size that shows whether masks refer to the picture as stored or upright"
        got = f"{annotated} for a picture with EXIF orientation {orientation}"
        fix = "say which with --frame stored or --frame upright"
    else:
        allowed, got = f"{upright}, the picture's", f"{annotated}"
        fix = "name the very picture that was annotated"
    report.add(f"{what}.(height, width)", got, allowed, fix)
    return None
