"""Killed just before a file operation, any of them, a command done again ends the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.forked import run as forked
from tests.conftest import ROOT

SAMPLE = 36  # one of each of 12 commands and three ways


@pytest.mark.slow
def test_a_seeded_sample_of_the_crash_points(tmp_path: Path) -> None:
    """All of them: `python benchmarks/crashes.py`; docs/recovery.md has its table."""

    def crashes() -> None:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        sys.argv = ["crashes.py", "--sample", str(SAMPLE)]
        from benchmarks.crashes import main

        main()

    log = tmp_path / "log"
    assert forked(crashes, log) == 0, log.read_text()
    cells = next(line for line in log.read_text().splitlines() if line.startswith("| all |"))
    *_, right, wrong, _ = cells.split("|")
    assert (int(right), int(wrong)) == (SAMPLE, 0)
