"""Shared pieces: a tiny plan in fp32 on the CPU, and the model built from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiles.plan import Plan
from profiles.skipping import VARIABLE

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "tests" / "photos"


def tiny_plan(**settings: object) -> Plan:
    """A plan for lisa-tiny without dropout, in fp32, NF4 only where asked."""
    base: dict[str, object] = {
        "device": "cpu",
        "dtype": "fp32",
        "quantization": "none",
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "qv"},
        "micro_batch": 2,
        "effective_batch": 2,
        "mask_loss_resolution": 64,
        "cached_encoders": [],
        "schedule": {"learning_rate": 1e-3, "warmup_steps": 0, "epochs": 1},
    }
    return Plan.parse(base | settings)


@pytest.fixture
def photos() -> Path:
    """A genuine ReasonSeg directory of real photographs."""
    return PHOTOS


@pytest.fixture(autouse=True)
def nothing_stays_announced() -> Iterator[None]:
    """A command that runs inside of a test announces its --skip-broken to its children for good."""
    before = os.environ.pop(VARIABLE, None)
    yield
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end one worker would be busy with it, and the other idle."""
    longest = ("test_a_seeded_sample_of_the_crash_points", "test_photographs_are_learnt_by_heart")
    items.sort(key=lambda item: item.name not in longest)
