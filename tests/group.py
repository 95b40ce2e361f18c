"""Forked processes that train as one group, as those of a launcher do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from benchmarks.forked import end, fork


def together(count: int, work: Callable[[], object], log: Path, machines: int = 1) -> list[int]:
    """Run `work` in so many processes, as if on so many machines; their exit codes."""
    return [end(pid) for pid in begun(count, work, log, machines)]


def begun(count: int, work: Callable[[], object], log: Path, machines: int = 1) -> list[int]:
    """The numbers of the processes, which compute."""

    def one() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # the test's is of one process
        GradientState._reset_state()
        work()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = count // machines
    given = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "LOCAL_WORLD_SIZE": str(here), "GROUP_WORLD_SIZE": str(machines)}  # fmt: skip
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n % here)} for n in range(count)]
    return [fork(one, log, given | rank) for rank in ranks]
