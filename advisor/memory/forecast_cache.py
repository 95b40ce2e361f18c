"""Forecasts kept on disk: keyed by plan, samples, versions and the code that made them."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

from advisor.machine.cuda_context import installed
from advisor.memory.worst_sample import Worst
from profiles.files import write_whole
from profiles.measurement import Measurement
from profiles.plan import Plan
from profiles.skipping import announced

ROOT = Path(__file__).resolve().parents[2]


LIBRARIES = ("torch", "transformers", "accelerate", "bitsandbytes")


# Files that say what a mixture's samples hold beside ReasonSeg's. Written out, as ** neither
# follows links nor spares the folders full of pictures.
ANNOTATIONS = (
    "refer_seg/*/instances.json", "refer_seg/*/*.p", "vqa/*.json", "sem_seg/*/annotations.json",
    "ade20k/*.txt", "ade20k/annotations/training/*.png",
    "sem_seg/*/*.txt", "sem_seg/*/annotations/training/*.png",
)  # fmt: skip


def read_events(path: Path) -> list[tuple[int, int]]:
    """(block, bytes) as the rehearsal wrote them. Raises OSError, ValueError."""
    numbers = array("q", path.read_bytes())
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def key_of(plan: Plan, worst: Worst, compute_capability: tuple[int, int]) -> str:
    """A hash of all that can change the answer: plan, sample, data, code and libraries."""
    sample: tuple[Any, ...] = (worst.text_tokens, worst.masks, worst.answer_tokens)
    sample += worst.image_tokens, worst.answering
    parts: list[Any] = [plan.content_hash, sample, compute_capability]
    parts += [sys.version, *(installed(name) for name in LIBRARIES)]
    for package in ("trainer", "profiles"):
        sources = [p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".toml")]
        parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(sources)]
    if worst.data is not None and worst.text_tokens is None:
        files = sorted(p for p in worst.data.rglob("*.json") if p.is_file())
        if not plan.mixture.reason_seg_alone:
            files += sorted(path for names in ANNOTATIONS for path in worst.data.glob(names))
        most = announced()
        if most:  # then a picture that is repaired, or breaks, changes what is read
            files = sorted(p for p in worst.data.rglob("*") if p.is_file())
        parts += [str(worst.data.resolve()), most]
        for path in files:
            with suppress(OSError):  # it has just vanished: what is read does not hold it either
                found = path.stat()
                parts.append((str(path), found.st_size, found.st_mtime_ns))
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]


def read(answer: Path, events: Path) -> tuple[Measurement, list[tuple[int, int]]] | None:
    """A kept answer; None if there is none, or it is damaged."""
    try:
        measurement = Measurement.model_validate_json(answer.read_text(encoding="utf-8"))
        return measurement, read_events(events)
    except (OSError, ValueError):
        return None


def keep(folder: Path, key: str, measurement: Measurement, events: list[tuple[int, int]]) -> None:
    """Write an answer whole, the events first; a cache that cannot be written is no error."""
    numbers = array("q", (number for event in events for number in event))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{key}.events", numbers.tobytes())
        write_whole(folder / f"{key}.json", measurement.model_dump_json())
    except OSError:
        return
