"""fp16 on the GPU, with its gradient scaler: ended and resumed, against two whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fp16_resume import measured

pytestmark = pytest.mark.gpu
SAME = {"trained": 0.0, "loss": 0.0}


def test_the_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    row = measured(tmp_path)
    assert row["scaler"] and row["scaler_resumed"] == row["scaler"]
    assert row["whole_apart"] == SAME, "this test needs runs that do not differ by themselves"
    assert row["resumed_apart"] == SAME
