"""The rows that benchmarks have recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def rows(name: str) -> list[dict[str, Any]]:
    """The kept rows of a benchmark."""
    lines = (ROOT / "benchmarks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
