"""`--set key=value`: assignments on a plan's plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from profiles.findings import Finding
from profiles.text import brief


def assigned(overrides: Iterable[str]) -> dict[str, str]:
    """The settings that `key=value` texts assign, with their raw values."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def legible(name: str) -> str:
    """The name of a setting as it can be shown."""
    return name if name.isprintable() and len(name) <= 60 else brief(name)


def nearest_setting(name: str, settings: Sequence[str]) -> str:
    """The one of the plan's `settings` that was probably meant."""
    import difflib

    close = difflib.get_close_matches(name, settings, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/plan.md for the settings"


def assign(data: dict[str, Any], text: str, settings: Sequence[str]) -> Finding | None:
    """Apply one `key=value` to `data` in place; a Finding when it is none of the `settings`."""
    key, equals, raw = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        return Finding("--set", "must read key=value", brief(text), "--set micro_batch=4")
    if key not in settings:
        return Finding(legible(key), "no such setting", brief(text), nearest_setting(key, settings))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = raw
    if isinstance(value, str) and key in ("train", "cached_encoders"):
        value = [part.strip() for part in value.split(",") if part.strip()]
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            return Finding(parent, "is a table of settings", brief(data), f"leave {parent}= out")
    data[last] = value
    return None
