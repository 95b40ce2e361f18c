"""What a run was doing when an error came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def during(phase: str) -> Iterator[None]:
    """Have an error that passes say what the run was doing; the innermost says it first."""
    try:
        yield
    except Exception as error:
        error.add_note(phase)
        raise
