"""Starts the processes of a plan that has several, through torch's own launcher.

`accelerate launch --cpu --num_processes N` starts a single process where MPI is not set up, and
`lisa-train --set processes=N` uses no launcher at all. The plan and the run folder are decided once
and passed to the processes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, NoReturn

from profiles.environment import RANKS, borrowed, threads_for, usable_cores
from profiles.exits import EXIT_OUT_OF_MEMORY
from profiles.plan import Plan

SHUTDOWN_SECONDS = 10  # from an interrupt to killing the processes; torch waits 30 after a failure

LAUNCHER = "LISA_LAUNCHER"  # the process that started this group
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_held: list[object] = []  # never freed, see `hold`


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process: all its variables are set and valid."""
    try:
        rank, local, count = (int(environment[name]) for name in RANKS[:3])
        port = int(environment["MASTER_PORT"])
    except (KeyError, ValueError):
        return False
    return 0 <= local <= rank < count and 0 < port < 65536 and bool(environment.get("MASTER_ADDR"))


def started_here(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher started on this machine; this one alone without a launcher."""
    return int(environment.get("LOCAL_WORLD_SIZE", "1")) if is_launched(environment) else 1


def without_leftovers(environment: MutableMapping[str, str]) -> list[str]:
    """Remove variables that would override the plan; returns them as NAME=VALUE.

    These are a launcher's, if none runs (a `RANK=1` left in the shell by an earlier session would
    make this process a silent second), and settings of accelerate that contradict the plan.
    """
    names = borrowed(environment)
    if is_launched(environment):  # by `accelerate launch --cpu`, say, for a plan on the CPU
        names = [name for name in names if name != "ACCELERATE_USE_CPU"]
    else:
        names += [name for name in RANKS if name in environment]
    return [f"{name}={environment.pop(name)}" for name in names]


def end_with_parent(by: signal.Signals | None = None, parent: int | None = None) -> None:
    """Make Linux end this process when its launcher ends, for whatever reason.

    A launcher killed by SIGKILL cannot end its workers, which would train on beside the resumed
    run. The process is killed unless `by` names another signal. Uses prctl(2), PR_SET_PDEATHSIG;
    other systems have no such call. `parent` is the launcher's process id where it is known: it may
    have ended while this process was still importing.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by or signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def is_left_behind(environment: Mapping[str, str], parents: Path | None = None) -> bool:
    """Whether torchrun, or another launcher of torch's kind, ended while this one was importing.

    Called after `end_with_parent`, which notices if it ends later. Such a launcher is a Python
    program; the process that adopts its orphans is not. `parents`: the parent's command line.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        words = (parents or Path(f"/proc/{os.getppid()}/cmdline")).read_bytes().split(b"\0")
    except OSError:  # another system
        return False
    return bool(words[0]) and b"python" not in os.path.basename(words[0])


def own_launcher(environment: MutableMapping[str, str]) -> int | None:
    """Process id of the `start_processes` that started this one; removed for its own children."""
    known = environment.pop(LAUNCHER, "")
    return int(known) if known.isdecimal() else None


def is_under_accelerate() -> bool:
    """Whether `accelerate launch` started this process as a single one and waits for it.

    It forwards no signals: if it ended, the training would continue alone.
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:  # another system, or the parent is gone
        return False
    called = [os.path.basename(word) for word in words]
    return any(one in (b"accelerate", b"accelerate-launch") for one in called[:3]) or (
        b"accelerate.commands.launch" in words
    )


def hold(thing: object) -> None:
    """Keep an object of a group's process alive until `leave_group`.

    Freeing a model in training frees torch's gradient reducer, which holds Python's lock while it
    waits for gloo's threads. One of them may need that lock: a deadlock.
    """
    _held.append(thing)


def leave_group(code: int) -> NoReturn:
    """End this process of a group at once, without freeing anything: see `hold`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_main(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process reports and writes for the run."""
    return environment.get("RANK", "0") == "0"


def must_start_processes(plan: Plan, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the plan has several processes and no launcher has started them."""
    return plan.processes > 1 and not {"RANK", "WORLD_SIZE"} & environment.keys()


def start_processes(count: int, arguments: list[str]) -> int:
    """Run `python -P ARGUMENTS` `count` times as one group; returns the exit code.

    If one process fails, the others are ended; likewise if this one is interrupted (exit code 130).
    The code is negative if a signal ended the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The failed process has already said why; torch's report adds only where it ran.
    for name in ("", ".agent.server.api"):
        logging.getLogger("torch.distributed.elastic" + name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_for(usable_cores(), count)))
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        **_shutdown_timeout(LaunchConfig),
    )
    try:
        elastic_launch(config, sys.executable)("-P", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if EXIT_OUT_OF_MEMORY in codes:  # the others only lost their connection to that process
            return EXIT_OUT_OF_MEMORY
        return error.get_first_failure()[1].exitcode
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


def _shutdown_timeout(config: type) -> dict[str, Any]:
    """The option for `SHUTDOWN_SECONDS`, if torch's launcher has one: 2.11 has none."""
    has = "shutdown_timeout" in {field.name for field in dataclasses.fields(config)}
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if has else {}
