"""What a process takes beside torch's pool: the profile, and one measurement per card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.machine import cuda_context as context
from advisor.machine.cuda_context import (
    HOPPER,
    OTHERS,
    Context,
    context_of,
    kept_contexts,
    library_versions,
    measure_context,
)
from advisor.machine.gpu import Gpu, Machine
from profiles.measurement import Measurement
from profiles.plan import Plan

MIB = 2**20
ADA = Gpu(index=0, uuid="GPU-a", name="Some card", compute_capability=(8, 9))
MACHINE = Machine(gpus=(ADA,), driver_version="580.1")


def known(gpu: Gpu, machine: Machine, folder: Path) -> Context:
    return context_of(gpu, machine, kept_contexts(folder), library_versions())


def measurement(plan: Plan, process_mib: int | None) -> Measurement:
    return Measurement(
        plan=plan, verdict="FITS", gpu="Some card", gpu_bytes=2**33, text_tokens=(96, 96), masks=1,
        peak_reserved_bytes=100 * MIB, random_weights=True,
        process_bytes=None if process_mib is None else process_mib * MIB,
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that were rehearsed; a process of 400 MiB, 30 more with pinned tensors."""
    plans: list[Plan] = []

    def rehearsed(plan: Plan, *_: object) -> Measurement:
        plans.append(plan)
        return measurement(plan, 430 if plan.host_embeddings else 400)

    monkeypatch.setattr(context, "rehearsed", rehearsed)
    return plans


def test_a_card_that_was_never_measured_has_the_profile(tmp_path: Path) -> None:
    assert known(ADA, MACHINE, tmp_path) is OTHERS
    hopper = ADA.model_copy(update={"compute_capability": (9, 0)})
    assert known(hopper, MACHINE, tmp_path) is HOPPER
    assert HOPPER.bytes(pinned=True) - HOPPER.bytes(pinned=False) == 70 * MIB


def test_a_card_is_measured_once(tmp_path: Path, asked: list[Plan]) -> None:
    found = measure_context(ADA, MACHINE, tmp_path)
    assert (found.plain_bytes, found.pinning_bytes) == (300 * MIB, 30 * MIB)
    assert found.basis == "measured" and len(asked) == 2
    assert measure_context(ADA, MACHINE, tmp_path) == found == known(ADA, MACHINE, tmp_path)
    assert len(asked) == 2, "kept"
    newer = MACHINE.model_copy(update={"driver_version": "590.2"})
    assert known(ADA, newer, tmp_path) is OTHERS, "another driver is measured again"
    for path in tmp_path.iterdir():
        path.write_text("{broken")
    assert known(ADA, MACHINE, tmp_path) is OTHERS, "a damaged answer is none"
    measure_context(ADA, MACHINE, tmp_path)
    assert json.loads(next(tmp_path.iterdir()).read_text()) == [300 * MIB, 30 * MIB]


def test_where_the_driver_does_not_tell_the_profile_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "rehearsed", lambda plan, *_: measurement(plan, None))
    assert measure_context(ADA, MACHINE, tmp_path) is OTHERS
    assert list(tmp_path.iterdir()) == []
