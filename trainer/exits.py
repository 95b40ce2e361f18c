"""How a command of the trainer ends: with findings, and an exit code."""

from __future__ import annotations

from typing import NoReturn

import typer

from profiles.exits import EXIT_USAGE
from profiles.streams import tell


def fail(message: str) -> NoReturn:
    """End with `message` and the exit code of bad usage."""
    text = message if message.startswith("  - ") else f"  - {message}"
    tell(f"error:\n{text}")
    raise typer.Exit(EXIT_USAGE)
