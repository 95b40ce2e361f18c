"""A command's output: no answer is lost, whatever the terminal's encoding is.

All text goes out through `say` and `tell`, so that nothing in it can control the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from profiles.text import printable


def set_streams(arguments: Sequence[str] | None = None) -> None:
    """Called first by every command: JSON is UTF-8, text has ? for letters that are missing.

    Where the system's own encoding cannot spell file names, Python begins again in UTF-8.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        _begin_in_utf8()
    is_json = "--json" in arguments
    for stream, holds_json in ((sys.stdout, is_json), (sys.stderr, False)):
        if not hasattr(stream, "reconfigure"):  # a notebook's or a test's own
            continue
        if holds_json:
            # The bytes of a name that is no text become \udcXX, which JSON knows.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        else:
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """A result, on stdout."""
    print(printable(text), flush=True)


def tell(text: str) -> None:
    """A message to the user, on stderr; stdout is for results."""
    print(printable(text), file=sys.stderr, flush=True)


def _begin_in_utf8() -> None:
    """Start again in UTF-8: with LC_ALL=C, names beyond ASCII could not be opened."""
    encoding = sys.getfilesystemencoding().replace("-", "").lower()
    if os.name != "posix" or encoding == "utf8" or os.environ.get("PYTHONUTF8") == "1":
        return
    if not sys.executable or len(sys.orig_argv) < 2:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
