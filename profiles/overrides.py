"""`--set key=value`: assignments on a plan's plain data, and the arithmetic of batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import gcd
from typing import Any

from profiles.findings import Finding
from profiles.models import model_profile
from profiles.settings import (
    MOST,
)
from profiles.text import brief


def assigned(overrides: Iterable[str]) -> dict[str, str]:
    """The settings that `key=value` texts assign, with their raw values."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def with_batch_arithmetic(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the one of effective batch, micro-batch and accumulation that is not given.

    `checkpointed_layers: "all"` becomes the model's number of layers.
    """
    result = dict(data)
    processes = 1 if result.get("processes") is None else result["processes"]
    micro, accumulation, effective = (
        result.get(key) for key in ("micro_batch", "accumulation", "effective_batch")
    )
    numbers = [n for n in (micro, accumulation, effective, processes) if n is not None]
    if all(type(n) is int and 0 < n <= MOST for n in numbers):
        if effective is None and micro and accumulation:
            result["effective_batch"] = micro * accumulation * processes
        elif accumulation is None and micro and effective:
            result["accumulation"] = max(1, effective // (micro * processes))
        elif micro is None and accumulation and effective:
            result["micro_batch"] = max(1, effective // (accumulation * processes))
        elif effective and micro is None and accumulation is None:
            result["micro_batch"] = 1
            result["accumulation"] = max(1, effective // processes)
        elif effective is None and micro and accumulation is None:
            result["accumulation"] = 1
            result["effective_batch"] = micro * processes
    if result.get("checkpointed_layers") == "all":
        try:
            result["checkpointed_layers"] = model_profile(
                result.get("model", "tiny")
            ).decoder.layers
        except (ValueError, TypeError):
            result["checkpointed_layers"] = 0  # the model's own finding says what is wrong
    return result


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


def forget_dependent_batch(data: dict[str, Any], given: set[str]) -> None:
    """Drop the batch sizes that follow from the `given` ones, to be worked out anew.

    The effective batch stays what it was unless it is set, or both of the others are: a
    micro-batch is a memory lever, an effective batch is the user's recipe. More processes than
    the micro-batch leaves room for make the micro-batch smaller.
    """
    processes = data["processes"]
    if given == {"processes"} and type(processes) is int and processes > 0:
        data["micro_batch"] = gcd(data["micro_batch"], data["effective_batch"] // processes)
    if {"micro_batch", "accumulation"} <= given:
        follower = "effective_batch"
    else:
        follower = "micro_batch" if "accumulation" in given else "accumulation"
    if given and follower not in given:
        data.pop(follower)
