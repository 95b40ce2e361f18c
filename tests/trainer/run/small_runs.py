"""Short trainings of lisa-tiny, and how two of them are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from trainer.data.formats.reasonseg import Item, read_split
from trainer.reporter import Reporter
from trainer.run.run import Run
from trainer.run.started import Keeping

QUIET = Reporter(lambda text: None, lambda what, done, total: None)
TRAINED = 6  # pictures: an epoch has a step before one in its middle, and one behind it
SELDOM = Keeping()  # for a run that is not to be ended: a fifth of it is saving after every step


def plan(**settings: Any) -> Plan:
    """Two epochs of three steps, with dropout, accumulation and a falling learning rate."""
    return tiny_plan(**{
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "qv"},
        "micro_batch": 1, "accumulation": 2, "effective_batch": 2,
        "cached_encoders": ["mask", "vision"],
        "schedule": {"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 2, "shape": "linear"},
    } | settings)  # fmt: skip


def items() -> tuple[list[Item], list[Item]]:
    return read_split(PHOTOS, "train", TRAINED), read_split(PHOTOS, "val", 2)


def started(folder: Path, cache: Path, reporter: Reporter = QUIET, **settings: Any) -> Run:
    """A run that saves after every step, unless told how to keep."""
    folder.mkdir(exist_ok=True)
    keeping = settings.pop("keeping", Keeping(minutes=0))
    return Run(plan(**settings), *items(), folder, cache, reporter, keeping)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The trained tensors at the end, and all records but for seconds and memory."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / "last" / "trained.safetensors"), [
        {k: v for k, v in row.items() if k not in ("step_seconds", "memory_bytes")} for row in rows
    ]


def assert_same(one: Path, other: Path) -> None:
    (tensors, rows), (expected, known) = outcome(one), outcome(other)
    assert rows == known
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
