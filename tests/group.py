"""Processes forked off a test's own, which has imported torch: starting one takes seconds else."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

PATIENCE = 150  # seconds for one process: longer is a hang


def fork(work: Callable[[], object], log: Path, environment: Mapping[str, str]) -> int:
    """Start `work` in a process of its own, which prints to `log`; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)  # the test's other threads are not here
        os.environ.update(environment)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(count: int, work: Callable[[], object], log: Path) -> list[int]:
    """Run `work` in processes that train as one group, as a launcher starts them; exit codes."""

    def one() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # the test's is of one process
        GradientState._reset_state()
        work()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]
    return [end(pid) for pid in [fork(one, log, given | rank) for rank in ranks]]


def lisa_train(*arguments: str) -> Callable[[], None]:
    """The command, as `work`."""

    def called() -> None:
        from trainer.cli.train import main

        sys.argv = ["lisa-train", *arguments]
        main()

    return called
