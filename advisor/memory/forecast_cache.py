"""Forecasts kept on disk: keyed by plan, samples, versions and the code that made them."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from advisor.machine.cuda_context import installed
from advisor.memory.worst_sample import Worst
from profiles.compiled_layers import LAYERS_FILE
from profiles.files import write_whole
from profiles.measurement import Measurement, Timeline
from profiles.plan import Plan
from profiles.skipping import announced

ROOT = Path(__file__).resolve().parents[2]


LIBRARIES = ("torch", "transformers", "accelerate", "bitsandbytes")


# Files that describe a mixture's samples beside ReasonSeg's. They are listed level by level, since
# ** does not follow links and would also walk through the folders of pictures.
ANNOTATIONS = (
    "refer_seg/*/instances.json", "refer_seg/*/*.p", "vqa/*.json", "sem_seg/*/annotations.json",
    "ade20k/*.txt", "ade20k/annotations/training/*.png",
    "sem_seg/*/*.txt", "sem_seg/*/annotations/*/*.png", "sem_seg/*/training/*/labels/*.png",
)  # fmt: skip


class Answer(NamedTuple):
    """What a fake rehearsal found: bytes, every request of them, and a step by component."""

    measurement: Measurement
    events: list[tuple[int, int]]
    step: Timeline | None = None  # of training that could be followed


def read_events(path: Path) -> list[tuple[int, int]]:
    """(block, bytes) as the rehearsal wrote them. Raises OSError, ValueError."""
    numbers = array("q", path.read_bytes())
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def key_of(plan: Plan, worst: Worst, compute_capability: tuple[int, int]) -> str:
    """A hash of everything that can change the answer: plan, sample, data, code and libraries."""
    sample: tuple[Any, ...] = (worst.text_tokens, worst.masks, worst.answer_tokens)
    sample += worst.image_tokens, worst.answering
    parts: list[Any] = [plan.content_hash, sample, compute_capability]
    parts += [sys.version, *(installed(name) for name in LIBRARIES)]
    for package in ("trainer", "profiles"):
        sources = [p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".toml")]
        parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(sources)]
    parts.append(hashlib.sha256(LAYERS_FILE.read_bytes()).hexdigest())
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


def read(folder: Path, key: str) -> Answer | None:
    """A kept answer; None if there is none, or it is damaged."""
    try:
        text = (folder / f"{key}.json").read_text(encoding="utf-8")
        events = read_events(folder / f"{key}.events")
        return Answer(Measurement.model_validate_json(text), events, read_step(folder, key))
    except (OSError, ValueError):
        return None


def read_step(folder: Path, name: str) -> Timeline | None:
    """The step by component, if one was followed. Raises ValueError, OSError."""
    path = folder / f"{name}.step"
    if not path.exists():
        return None
    return Timeline.model_validate_json(path.read_text(encoding="utf-8"))


def keep(folder: Path, key: str, answer: Answer) -> None:
    """Write an answer whole, the measurement last; a cache that cannot be written is no error."""
    numbers = array("q", (number for event in answer.events for number in event))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{key}.events", numbers.tobytes())
        if answer.step is not None:
            write_whole(folder / f"{key}.step", answer.step.model_dump_json())
        write_whole(folder / f"{key}.json", answer.measurement.model_dump_json())
    except OSError:
        return
