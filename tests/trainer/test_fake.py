"""The rehearsal without a GPU: against rows measured on one, and its own bookkeeping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from profiles.measurement import Measurement
from profiles.plan import Plan
from tests.conftest import tiny_plan
from trainer.fake import MIB, fake_rehearsal
from trainer.model.build import read_tokenizer
from trainer.model.footprint import needed_bytes
from trainer.trace import MemoryTrace, rounded

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "benchmarks" / "lean.jsonl").read_text().splitlines()
MEASURED: dict[str, dict[str, Any]] = {
    record["name"]: record["measurement"] for record in map(json.loads, LINES)
}


@pytest.mark.parametrize("name", ["7b-b1", "7b-4gb", "7b-b1-int8", "seed-16gb-free"])
def test_forecast_meets_the_measured_row(name: str) -> None:
    """A change of the step or of a library that moves the peak shows here."""
    measured = MEASURED[name]
    text, masks = measured["text_tokens"][1], measured["masks"]
    found = fake_rehearsal(Plan.parse(measured["plan"]), text, masks, (9, 0))
    assert found.peak_allocated_bytes is not None
    error = found.peak_allocated_bytes / measured["peak_allocated_bytes"] - 1
    assert -0.003 < error < 0.006, f"{error:+.2%}"
    assert sum(found.live_at_peak.values()) == found.peak_allocated_bytes


def test_what_lies_on_the_card_is_what_was_counted() -> None:
    plan = tiny_plan(quantization="nf4", cached_encoders=["sam", "clip"], checkpointed_layers=4)
    counted = needed_bytes(plan, read_tokenizer(plan))
    found = fake_rehearsal(plan, 64, 1)
    assert list(found.phases) == ["evaluation", "forward", "backward", "clipping", "optimizer"]
    live = found.live_at_peak
    for label, name in (("frozen weights", "frozen"), ("trained tensors", "trained"),
                        ("optimizer state", "optimizer")):  # fmt: skip
        # Each of some hundred tensors is rounded up to 512 bytes.
        assert counted[name] <= live[label] <= counted[name] + 512 * 600


def test_longer_samples_and_fewer_levers_take_more() -> None:
    def peak(text: int = 64, masks: int = 1, **settings: object) -> int:
        plan = tiny_plan(cached_encoders=["sam", "clip"], effective_batch=4, micro_batch=4,
                         **settings)  # fmt: skip
        found = fake_rehearsal(plan, text, masks).peak_allocated_bytes
        assert found is not None
        return found

    base = peak()
    assert peak(text=200) > base and peak(masks=3) > base
    assert peak(checkpointed_layers=4) < base
    assert peak(optimizer_state="8bit") < base
    hopper = fake_rehearsal(tiny_plan(), 64, 1, (9, 0)).live_at_peak["cuBLAS workspaces"]
    assert hopper == 64 * MIB


def test_trace_counts_storages_once_and_until_they_are_gone() -> None:
    trace = MemoryTrace()
    held = torch.zeros(1000)
    elsewhere = torch.zeros(5000)
    trace.hold([held, held.view(10, 100)], "held")
    trace.leave_out([elsewhere])
    with trace:
        trace.begin("first")
        a = held + 1
        b = a.view(10, 100)[:5]
        del a
        _ = elsewhere[:10]
        trace.begin("second")
        c = torch.empty(300, dtype=torch.uint8)
        del b, c
    size = rounded(4000)
    assert trace.peaks() == {"first": 2 * size, "second": 2 * size + 512}
    assert trace.live_at_peak() == {"held": size, "first": size, "second": 512}
    assert sum(change for _, change in trace.events) == size


def test_the_child_prints_one_document(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(tiny_plan().to_json())
    command = [sys.executable, "-m", "trainer.rehearsal", str(tmp_path / "plan.json"), "--fake"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = Measurement.model_validate_json(done.stdout)
    assert found.verdict == "UNKNOWN" and found.peak_allocated_bytes == max(found.phases.values())
