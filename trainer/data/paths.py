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
    outside = bool(parts.anchor) or "\0" in text
    for folder in () if outside else folders:
        border = root or folder
        path = Path(os.path.abspath(folder.joinpath(*parts.parts)))
        leads_out = os.path.lexists(path) and not path.resolve().is_relative_to(border.resolve())
        if leads_out or not path.is_relative_to(os.path.abspath(border)):
            outside = True
        elif path.is_file():
            return path
    if outside:
        fix = "put the picture itself there and correct the name"
        report.add(what, name, f"{allowed}, not one outside of it", fix)
    else:
        report.add(what, name, allowed, "fetch the picture or take the annotation out")
    return None
