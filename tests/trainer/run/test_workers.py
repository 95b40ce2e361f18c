"""Data workers live under every way that Python starts a process."""

from __future__ import annotations

import multiprocessing

import pytest

from trainer.run.workers import end_with_run


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_data_worker_lives_however_it_was_started(method: str) -> None:
    """Under forkserver its parent is that server, and not who asked for the worker."""
    worker = multiprocessing.get_context(method).Process(target=end_with_run, args=(0,))  # type: ignore[attr-defined]
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
