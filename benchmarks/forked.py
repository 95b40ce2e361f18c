"""Processes forked off one that has imported torch: starting one takes seconds else."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

PATIENCE = 300  # seconds for one process: longer is a hang
Environment = Mapping[str, str] | None  # variables that are added


def lisa_train(*arguments: str) -> Callable[[], None]:
    """The command, as work for a process."""

    def called() -> None:
        from trainer.cli.train import main

        sys.argv = ["lisa-train", *arguments]
        main()

    return called


def here(work: Callable[[], object]) -> int:
    """Do `work` in this process; the exit code that it would have as a process."""
    try:
        work()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(work: Callable[[], object], log: Path, environment: Environment = None) -> int:
    """Start `work` in a process of its own, which prints to `log`; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(PATIENCE)
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ.update(environment or {})
        import torch

        torch.set_num_threads(1)  # the other threads of the process before are not here
        code = here(work)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever became of its streams, it must not go on as its parent does
            os._exit(code)


def end(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal. Raises TimeoutError."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGALRM:
        raise TimeoutError(f"hung for {PATIENCE} s")
    return code


def run(work: Callable[[], object], log: Path, environment: Environment = None) -> int:
    """Both: the exit code of forked work."""
    return end(fork(work, log, environment))
