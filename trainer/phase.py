"""What a run was doing when an error occurred."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def during(phase: str) -> Iterator[None]:
    """Add what the run was doing to an error that passes; the innermost note comes first."""
    try:
        yield
    except Exception as error:
        error.add_note(phase)
        raise
