"""Shared pieces: a tiny plan in fp32 on the CPU, and the model built from it."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
import typer.main
import typer.testing

from advisor import rehearsal
from profiles.plan import Plan
from profiles.skipping import VARIABLE

gc.disable()  # until all tests are imported: they stay, and looking through them takes seconds

# Tests fork processes that have computed: OpenMP's threads are not there, and two of a group would
# wait for them for ever. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test cuts the power. Waiting for the disk takes 5 to 8 ms each time, 135 times in a run of 8
# steps. Here nothing waits; a child process does not where temporary files are in memory. What is
# forced to the disk is counted by benchmarks/file_operations.py.
os.fsync = lambda handle: None
IN_MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30  # bytes; the tests need a quarter of it
if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > ROOM:
    tempfile.tempdir = os.environ.setdefault("TMPDIR", str(IN_MEMORY))

# A process runs one command; here hundreds do, and making its options takes 16 ms each time.
typer.main.get_command = typer.testing._get_command = cache(typer.main.get_command)

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


def _rehearse_here(
    command: Sequence[str], timeout: float, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    from trainer.rehearse.__main__ import main

    assert "trainer.rehearse" in command and "--fake" in command, command
    arguments = command[command.index("trainer.rehearse") :]
    out, errors, code = StringIO(), StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(os, "_exit", sys.exit),
        redirect_stderr(errors),
        redirect_stdout(out),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            gc.enable()
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


@pytest.fixture
def rehearsals_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rehearsals without a GPU run in this process, which imports torch once and not each time."""
    monkeypatch.setattr(rehearsal, "in_child", _rehearse_here)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's cards from tests without a GPU.

    Where torch sees one, its first backward pass starts threads, after which no forked process can
    learn.
    """
    if "not gpu" in config.getoption("markexpr") and Path("/dev/nvidiactl").exists():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first and 800 short ones last: one worker would be idle while the other ends."""
    longest = {"test_a_seeded_sample_of_the_crash_points", "test_photographs_are_learnt_by_heart",
               "test_the_command_line_goes_on_after_a_kill"}  # fmt: skip
    items.sort(key=lambda item: (item.name not in longest, item.path.name == "test_gpus.py"))
    gc.freeze()
    gc.set_threshold(7_000)  # ten times the usual: hypothesis times each search, too
    gc.enable()
