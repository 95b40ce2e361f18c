"""Killed just before a file operation, any of them, a command done again ends the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SAMPLE = 60  # five of each of 12 commands: killed, torn, and killed twice


@pytest.mark.slow
def test_a_seeded_sample_of_the_crash_points() -> None:
    """All of them are killed by `python benchmarks/crashes.py`; docs/recovery.md has its table."""
    command = [sys.executable, "benchmarks/crash_copies.py"]
    # Scripts find their neighbours by the path that other tests' commands shut off.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{SAMPLE} cases, 0 wrong"
