"""The one place where the name of a picture, as annotations have it, becomes a path."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from trainer.data.reasonseg import Report, read_sentence


def picture_in(
    report: Report, what: str, name: object, *folders: Path, root: Path | None = None
) -> Path | None:
    """The picture called `name` in the first folder that has it; None with a finding added.

    No name leads out of `root`, by default out of the folder itself, whatever system it was
    written for, nor by a symbolic link on the way: annotations from elsewhere shall not pick files
    of this machine.
    """
    text = read_sentence(report, what, name)
    if text is None:
        return None
    allowed = f"the path of a picture in {root or ' or '.join(map(str, folders))}"
    parts = PureWindowsPath(text)  # knows both kinds of separators, and drives
    outside = bool(parts.anchor)
    for folder in () if outside else folders:
        path = Path(os.path.abspath(folder.joinpath(*parts.parts)))
        outside |= _leads_out(path, root or folder)
        if not outside and _is_file(path):
            return path
    if outside:
        fix = "put the picture itself there and correct the name"
        report.add(what, name, f"{allowed}, not one outside of it", fix)
    else:
        fix = "fetch the picture or take the annotation out"
        report.add(what, name, f"{allowed}; there is no such file", fix)
    return None


def _leads_out(path: Path, border: Path) -> bool:
    if not path.is_relative_to(os.path.abspath(border)):
        return True
    return _is_file(path) and not path.resolve().is_relative_to(border.resolve())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, for one
        return False
