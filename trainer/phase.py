"""What a run was doing when an error occurred."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def during(phase: str) -> Iterator[None]:
    """Note on a passing error what the run was doing; the innermost note comes first."""
    try:
        yield
    except Exception as error:
        error.add_note(phase)
        raise
