"""How the trainer's commands end on errors: a list, as there may be several, and an exit code."""

from __future__ import annotations

from typing import NoReturn

import typer

from profiles.exits import EXIT_USAGE
from profiles.streams import tell


def fail(message: str) -> NoReturn:
    """Print `message` as an item of a list of errors and end with the exit code of bad usage."""
    text = message if message.startswith("  - ") else f"  - {message}"
    tell(f"error:\n{text}")
    raise typer.Exit(EXIT_USAGE)
