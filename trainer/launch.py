"""Starts the processes of a plan that has several, through torch's own launcher.

`accelerate launch --cpu --num_processes N` starts a single process where MPI is not set up, and
`lisa-train --set processes=N` uses no launcher at all. What was decided once — the plan, the run
folder — is handed to the processes, not worked out again by each.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Mapping

from profiles.plan import Plan
from profiles.surroundings import threads_for, usable_cores

SHUTDOWN_SECONDS = 10  # between asking the processes to end and killing them


def is_main(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks and writes for the run."""
    return environment.get("RANK", "0") == "0"


def must_start_processes(plan: Plan, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the plan's processes are still to be started: no launcher has done it."""
    return plan.processes > 1 and not {"RANK", "WORLD_SIZE"} & environment.keys()


def start_processes(count: int, arguments: list[str]) -> int:
    """Run `python ARGUMENTS` `count` times as one group; its exit code.

    A process that fails ends the others. So does an interrupt of this one, which gives 130.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The failed process has already said why; torch's report adds only where it ran.
    for name in ("", ".agent.server.api"):
        logging.getLogger("torch.distributed.elastic" + name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_for(usable_cores(), count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0
