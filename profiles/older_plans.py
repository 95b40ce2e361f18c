"""Plans as earlier versions wrote them: how they are read, and what keeps their hash.

`plan.json` of run folders and exports, tested rows and records of benchmarks hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings that had no effect, with the only value that could be written.
RETIRED: dict[str, Any] = {"quantized_parts": ["llama"]}


def modernised(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with today's names and values; those of today pass unchanged."""
    return {name: value for name, value in data.items() if name not in RETIRED}


def as_first_written(data: dict[str, Any]) -> dict[str, Any]:
    """A plan's plain data in the words of schema 1, whose hash names rows, caches and runs."""
    return data | RETIRED
