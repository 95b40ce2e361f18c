"""Where the installed commands begin: they say if a folder of ours is another package's.

`advisor` and `trainer` are common names: `trainer` and `coqui-tts-trainer` on PyPI are folders of
that name too. Installed into one environment, the later overwrites files of the earlier, and the
command would end in a traceback. This file imports neither folder before it has looked.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from profiles.exits import EXIT_USAGE
from profiles.files import refused
from profiles.streams import tell

FOLDERS = ("advisor", "studio", "trainer")
OURS = b"lisa-preflight"  # stands in the docstring of each folder's __init__.py
REMEDY = "python -m venv ENV, and install lisa-preflight alone there"


def advise() -> None:
    """`lisa-advise`."""
    _start("advisor.cli.__main__", "main")


def train() -> None:
    """`lisa-train`."""
    _start("trainer.cli.__main__", "train")


def segment() -> None:
    """`lisa-segment`."""
    _start("trainer.cli.__main__", "segment")


def studio() -> None:
    """`lisa-studio`."""
    _start("studio.main", "main")


def _start(module: str, function: str) -> None:
    for folder in FOLDERS:
        if found := stranger(folder):
            tell(f"error: {found}\n    hint: {REMEDY}")
            sys.exit(EXIT_USAGE)
    try:
        getattr(import_module(module), function)()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # of any path that was given: even a look raises it
            raise
        tell(f"error: {refused(error)}")
        sys.exit(EXIT_USAGE)


def stranger(folder: str) -> str | None:
    """The package that Python finds in place of our folder; None if it finds ours."""
    spec = find_spec(folder)
    if spec is None or spec.origin is None:
        return f"the package {folder!r} of lisa-preflight is gone, or lacks its __init__.py"
    if OURS in Path(spec.origin).read_bytes():
        return None
    return f"{folder!r} is another package's: {spec.origin} ({_owners(folder)})"


def _owners(folder: str) -> str:
    """The other installed packages that have a folder of this name."""
    from importlib.metadata import packages_distributions

    names = set(packages_distributions().get(folder, [])) - {OURS.decode()}
    return f"of {', '.join(sorted(names))}" if names else "not installed by a package"
