"""Tables that scripts write into the docs, between marks, and the rows that they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def put(page: Path, begin: str, end: str, lines: Iterable[str]) -> None:
    """Replace what is between the marks of `page` by `lines`. Raises ValueError."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page.name} lacks the marks {begin} … {end}")
    page.write_text(before + "\n".join([begin, *lines, end]) + after, encoding="utf-8")
