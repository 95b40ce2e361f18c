"""Plans as earlier versions wrote them: how they are read, and what keeps their hash.

`plan.json` of run folders and exports, tested rows and records of benchmarks hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of schema 1 that had no effect, with the only value that could be written.
RETIRED: dict[str, Any] = {"quantized_parts": ["llama"]}
# Schema 1 named encoders after LISA's two; since schema 2 they are named after their roles.
ROLES: dict[Any, str] = {"clip": "vision", "sam": "mask"}
FIRST_NAMES = {role: name for name, role in ROLES.items()}


def modernised(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with today's names and values; those of today pass unchanged."""
    found = {name: value for name, value in data.items() if name not in RETIRED}
    cached = found.get("cached_encoders")
    if isinstance(cached, list | tuple):
        words = (ROLES.get(one, one) if isinstance(one, str) else one for one in cached)
        found["cached_encoders"] = type(cached)(words)
    if found.get("schema_version") == 1:
        found["schema_version"] = 2
    return found


def as_first_written(data: dict[str, Any]) -> dict[str, Any]:
    """A plan's plain data in the words of schema 1: rows and runs are named by its hash."""
    cached = [FIRST_NAMES[role] for role in data["cached_encoders"]]
    return data | RETIRED | {"schema_version": 1, "cached_encoders": cached}
