"""How many broken entries of a data set may be left out; passed on to child processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

ALL = 2**53 - 1  # more entries than any data set has
OPTION = "--skip-broken"
VARIABLE = "LISA_SKIP_BROKEN"  # for the processes that read the data for a command


def read_most(text: str | None) -> int:
    """How many broken entries may be left out, of the option's text. Raises ValueError."""
    if text is None:
        return 0
    if text.strip().lower() == "all":
        return ALL
    if text.strip().isascii() and text.strip().isdecimal():
        return min(int(text), ALL) if len(text) < 20 else ALL
    raise ValueError(f"{OPTION}: got {text!r}; allowed: a number of entries, or all")


def announce(most: int) -> None:
    """Let the child processes that read the data leave out as many."""
    os.environ.pop(VARIABLE, None)
    if most:
        os.environ[VARIABLE] = str(most)


def announced(environment: Mapping[str, str] = os.environ) -> int:
    """How many entries this process may leave out, as it or its parent set. Raises ValueError."""
    return read_most(environment.get(VARIABLE))


def option(environment: Mapping[str, str] = os.environ) -> str:
    """The option as the end of a command line; empty if nothing may be left out."""
    most = announced(environment)
    return "" if not most else f" {OPTION} {'all' if most == ALL else most}"
