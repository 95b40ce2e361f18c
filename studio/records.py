"""Records and figures of a run's files, which anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.answer.scored import are_numbers

MOST_BYTES = 8 << 20  # of records for one answer; the page asks for the rest


def records(path: Path, at: int) -> tuple[list[dict[str, Any]], int, bool]:
    """The whole lines after the first `at` bytes, where they end, and whether they start over.

    A resumed run cuts its records back to those of its checkpoint, so they may have become fewer.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            anew = at > size
            start = file.seek(0 if anew else at)
            whole = file.read(MOST_BYTES)
    except OSError:
        return [], 0, at > 0
    whole = whole[: whole.rfind(b"\n") + 1]
    return list(_rows(whole)), start + len(whole), anew


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield {name: value for name, value in found.items()
                   if not isinstance(value, int | float) or are_numbers([value])}  # fmt: skip


def number(document: Any, name: str) -> float | None:
    """A figure of a table; None where there is no such figure, or no table."""
    value = document.get(name) if isinstance(document, dict) else None
    return value if are_numbers([value]) else None
