"""lisa-train in forked processes, which need not import torch again."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300  # seconds for one process: longer is a hang


def here(arguments: list[str]) -> int:
    """Run lisa-train in this process; its exit code."""
    sys.argv = ["lisa-train", *arguments]
    from trainer.cli import train as cli

    try:
        cli.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 1  # it ends with an exit code


def start(arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a process that runs lisa-train, `prepare` first; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        prepare()
        code = here(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal. Raises TimeoutError."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise TimeoutError(f"hung for {PATIENCE} s")


def run(arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Both: the exit code of a forked lisa-train."""
    return end(start(arguments, log, prepare))
