"""lisa-advise explain-oom: what an out-of-memory message of any training says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from advisor.cli.options import Json
from profiles.exits import fail
from profiles.streams import say, tell

ENDS = 2 << 20  # bytes that are read from either end of a log
MESSAGE_WORDS = 4  # words: a text with so many is not a file's name, whatever is in it
_NAMES_A_FILE = re.compile(r"[\\/]|\.[A-Za-z]\w{0,4}$")  # a folder's name, or an ending


def explain_oom_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MESSAGE",
            help="A log or shortage.json, '-' for stdin, or the message itself in quotes.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """What does this out-of-memory message say, and what would help? Of any training script.

    Reads PyTorch's messages of all versions, CUDA's and its libraries', and those of a full host
    memory. The first message of a process decides.

    Exit codes: 0 explained, 2 bad usage, 3 cannot tell, 130 interrupted.
    """
    from advisor.oom.explain import explain
    from advisor.oom.log import decoded
    from advisor.report.oom_text import print_explanation
    from advisor.report.text import PlainConsole

    first, last = _given(source)
    found = explain(decoded(first, last))
    if last:
        note = f"only the first and the last {ENDS >> 20} MiB were read; lines are counted in these"
        found = found.model_copy(update={"notes": (*found.notes, note)})
    if as_json:
        say(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        print_explanation(found, PlainConsole())
    raise typer.Exit(found.exit_code)


def _given(source: str) -> tuple[bytes, bytes]:
    """The message, or a file's first bytes and the last ones of a longer one.

    Ends with exit code 2 where there is no such file.
    """
    if _is_message(source) and not os.path.exists(source):
        return source.encode(errors="replace"), b""
    return _ends(Path(source))


def _is_message(text: str) -> bool:
    """Whether a text is a message, not a file's name: many words, or words that name no file.

    A single word is a message only if it is a known one, such as "Killed".
    """
    from advisor.oom.explain import explain

    words = len(text.split())
    if words >= MESSAGE_WORDS:
        return True
    if _NAMES_A_FILE.search(text):
        return False
    return words != 1 or explain(text).exit_code == 0


def _ends(file: Path) -> tuple[bytes, bytes]:
    """The first bytes of a log, and the last ones of a longer one. Ends with exit code 2."""
    from profiles.files import ends_of, read_ends, reason

    try:
        if str(file) != "-":
            return read_ends(file, ENDS)
        if sys.stdin.isatty():
            tell("paste the message, then press Ctrl-D (Windows: Ctrl-Z and Enter)")
        return ends_of(sys.stdin.buffer, ENDS)
    except OSError as error:
        fail(f"{file}: cannot be read: {reason(error)}")
