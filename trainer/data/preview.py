"""Draws a sheet of a data set's items as training sees them: picture, question, answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.own_files import refuse_others
from profiles.text import one_line
from trainer.data.formats.reasonseg import Item, read_split
from trainer.data.images import read_image
from trainer.data.overlays import IGNORED, TRUE, Row, Tile, write_sheet
from trainer.data.polygons import IGNORE, TARGET, paint_mask

if TYPE_CHECKING:
    from trainer.data.broken import SkippedEntries


def write_preview(
    data: Path, split: str, count: int, seed: int, path: Path, leave: SkippedEntries | None = None
) -> list[str]:
    """Write `count` items of a split, drawn with `seed`, as one PNG; a line of text about each.

    `leave` accepts broken items. Raises DataError for broken data, ValueError if the file is a
    folder or lies in none, or in the data folder, where it would become a picture to train on,
    FileExistsError if it is another's, and OSError if it cannot be written.
    """
    if path.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"{path}: is in the data folder; name another place with --out")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a .png in it with --out")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no folder {path.parent}; make it, or name another with --out")
    refuse_others(path, "a picture")
    items = read_split(data, split, None, leave)
    drawn = np.random.default_rng(seed).permutation(len(items))[:count]
    chosen = [items[place] for place in sorted(drawn)]
    rows = [_row(item) for item in chosen]
    write_sheet(rows, path)
    return [one_line(f"{item.name} ({_kind(item)}): {item.texts[0]}") for item in chosen]


def _kind(item: Item) -> str:
    kind = "sentence" if item.is_sentence else "phrase"
    return kind if len(item.texts) == 1 else f"{kind}, 1 of {len(item.texts)} texts"


def _row(item: Item) -> Row:
    image = read_image(item.image_path)
    mask = paint_mask(item.polygons, *image.shape[:2])
    target, ignored = mask == TARGET, mask == IGNORE
    caption = f"target {target.mean():.1%}" if target.any() else "no target"
    if ignored.any():
        caption += f", ignored {ignored.mean():.1%}"
    answer = Tile(caption, image, (target, ignored), (TRUE, IGNORED))
    return Row(item.texts[0], (Tile(f"{item.name}\n{_kind(item)}", image), answer))
