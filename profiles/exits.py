"""How a command ends: its exit codes, and the line that says what went wrong."""

from __future__ import annotations

from typing import NoReturn

from profiles.streams import tell

EXIT_FAILED, EXIT_USAGE, EXIT_UNKNOWN, EXIT_INTERRUPTED = 1, 2, 3, 130
EXIT_OUT_OF_MEMORY = 75  # of one process among several: the run continues with a smaller plan


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Print an error, or a list of them, and end the command with `code`."""
    import typer

    tell(f"error:\n{message}" if message.startswith("  - ") else f"error: {message}")
    raise typer.Exit(code)
