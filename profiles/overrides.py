"""`--set key=value`: assignments on a plan's plain data, and the arithmetic of batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from profiles.findings import Finding
from profiles.models import model_profile
from profiles.settings import (
    EFFECTIVE_BATCH,
    MOST,
)
from profiles.text import brief

if TYPE_CHECKING:
    from profiles.plan import Plan


def assigned(overrides: Iterable[str]) -> dict[str, str]:
    """The settings that `key=value` texts assign, with their raw values."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def full_rows(questions: int, per_picture: int) -> int:
    """Rows that so many questions fill, if every picture has enough of them."""
    return -(-questions // per_picture)


def passes(rows: int, micro_batch: int, processes: int) -> int:
    """Forward passes of the process that has the most of `rows`."""
    return -(-rows // (micro_batch * processes))


def micro_batches(plan: Plan, most: int) -> list[int]:
    """Micro-batches up to `most` that take the plan's effective batch in even passes.

    Where rows share pictures, of those with as many passes the smallest.
    """
    if plan.questions_per_picture == 1:
        share = plan.effective_batch // plan.processes
        return [n for n in range(1, most + 1) if share % n == 0]
    rows = full_rows(plan.effective_batch, plan.questions_per_picture)
    share = full_rows(rows, plan.processes)
    return [n for n in sorted({full_rows(share, count) for count in range(1, share + 1)})
            if n <= most]  # fmt: skip


def with_batch_arithmetic(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the one of effective batch, micro-batch and accumulation that is not given.

    `checkpointed_layers: "all"` becomes the model's number of layers.
    """
    result = dict(data)
    micro, accumulation, effective, processes, questions = (
        result.get(key) for key in ("micro_batch", "accumulation", "effective_batch", "processes",
                                    "questions_per_picture")
    )  # fmt: skip
    processes, questions = (1 if n is None else n for n in (processes, questions))
    given = [n for n in (micro, accumulation, effective, processes, questions) if n is not None]
    if all(type(n) is int and 0 < n <= MOST for n in given):
        if effective is None and micro:
            accumulation = result["accumulation"] = accumulation or 1
            result["effective_batch"] = micro * accumulation * processes * questions
        elif effective is None and questions > 1:
            effective = result["effective_batch"] = EFFECTIVE_BATCH
        if effective:
            rows = full_rows(effective, questions)
            # Rows that are not full are shared out as well as it goes; samples must come out even.
            share = int.__floordiv__ if questions == 1 else full_rows
            if micro is None:
                micro = result["micro_batch"] = (
                    max(1, share(rows, accumulation * processes)) if accumulation else 1
                )
            result["accumulation"] = accumulation or max(1, share(rows, micro * processes))
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
    processes, questions = data["processes"], data["questions_per_picture"]
    if given == {"processes"} and type(processes) is int and processes > 0:
        if questions == 1:
            data["micro_batch"] = gcd(data["micro_batch"], data["effective_batch"] // processes)
        else:
            share = passes(full_rows(data["effective_batch"], questions), 1, processes)
            data["micro_batch"] = min(data["micro_batch"], share)
    if {"micro_batch", "accumulation"} <= given:
        follower = "effective_batch"
    else:
        follower = "micro_batch" if "accumulation" in given else "accumulation"
    if given and follower not in given:
        data.pop(follower)
