"""The files of an answer: masks, overlay, and a row of values."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.images import read_image
from trainer.data.overlays import captioned, overlay, write_picture

if TYPE_CHECKING:
    from trainer.answer.question import Answer
from trainer.answer.question import Question

# Names that `write_pictures` gives: when a folder is asked about again, these are not its pictures.
WRITTEN = re.compile(r"(.+?)(?:-\d+)?\.(?:mask(?:-\d+)?|overlay)\.png")
PICTURE_OF = re.compile(r"(.+)\.(?:mask(?:-[1-9][0-9]*)?|overlay)\.png")  # of a STEM
NAMED = 8  # of the files that are left out
_LONGEST_STEM = 200  # bytes: names may have 255, and -12.mask-3.png is appended


def stems(asked: Sequence[Question], folder: Path) -> list[Path]:
    """Path of each answer's pictures: `folder / NAME`, numbered if NAME is used already."""
    found: list[Path] = []
    for question in asked:
        name = shortened(question.image.stem)
        number, stem = 2, folder / name
        while stem in found:
            number, stem = number + 1, folder / f"{name}-{number}"
        found.append(stem)
    return found


def shortened(stem: str) -> str:
    """A picture's name, short enough for endings; a shortened one ends in its checksum."""
    spelled = os.fsencode(stem)
    if len(spelled) <= _LONGEST_STEM:
        return stem
    whole = spelled[: _LONGEST_STEM - 9].decode("utf-8", "ignore")
    return f"{whole}-{hashlib.sha256(spelled).hexdigest()[:8]}"


def write_pictures(question: Question, answer: Answer, stem: Path) -> list[Path]:
    """STEM.mask.png (of several [SEG]: STEM.mask-1.png, …) and STEM.overlay.png, if any mask.

    Files of an earlier answer under these names are removed: they would seem to be this one's.
    Raises OSError, DataError; then no file of either answer is left.
    """
    files: list[Path] = []
    try:
        for name, picture in _pictures(question, answer):
            path = stem.with_name(stem.name + name)
            files.append(write_picture(Image.fromarray(picture), path))
    except Exception:
        files.clear()
        raise
    finally:
        for path in written_before(stem.parent, [stem]):
            if path not in files:
                path.unlink(missing_ok=True)
    return files


def _pictures(question: Question, answer: Answer) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The pictures of an answer, each with what is appended to its name."""
    for number, mask in enumerate(answer.masks, 1):
        name = f".mask-{number}.png" if len(answer.masks) > 1 else ".mask.png"
        yield name, mask.astype(np.uint8) * 255
    if len(answer.masks):
        shown = overlay(read_image(question.image), [*answer.masks])
        yield ".overlay.png", captioned(shown, question.text)


def written_before(folder: Path, stems: Iterable[Path]) -> list[Path]:
    """The files in a folder under the names that `write_pictures` writes for the STEMs in it."""
    names = {stem.name for stem in stems}
    found = ((path, PICTURE_OF.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return [path for path, match in found if match is not None and match[1] in names]


def row_of(question: Question, answer: Answer, files: list[Path]) -> dict[str, Any]:
    """An answer as plain values; masks as COCO's run lengths (read them with pycocotools)."""
    return {
        "image": str(question.image),
        "question": question.text,
        "answer": answer.text,
        "seconds": round(answer.seconds, 3),
        "masks": [run_lengths(mask) for mask in answer.masks],
        "files": [str(path) for path in files],
    } | ({"masks_left_out": answer.left_out} if answer.left_out else {})


def row_of_unanswered(question: Question, error: str) -> dict[str, Any]:
    """The row of a question whose picture cannot be read or whose answer cannot be written."""
    named = {"image": str(question.image), "question": question.text}
    return named | {"error": error, "masks": [], "files": []}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed RLE {"size": [H, W], "counts": text}, and its area."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode(), "area": int(mask.sum())}
