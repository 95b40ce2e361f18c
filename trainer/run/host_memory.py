"""The host memory of a run's weights: where a machine has several ranks, one copy for all."""

from __future__ import annotations

import os
from functools import partial

from profiles.files import reason
from profiles.plan import Plan
from trainer.model.layers.host_memory import HostMemory, SharedMemory
from trainer.parallel.ranks import Ranks


def host_memory(plan: Plan, ranks: Ranks) -> HostMemory:
    """Memory for what the plan keeps on the host, shared by the ranks of this machine.

    Only Linux has files without a name; elsewhere each rank has a copy. Raises RuntimeError.
    """
    wanted = plan.host_layers or plan.host_embeddings
    if not wanted or len(ranks.of_machine) == 1 or not hasattr(os, "memfd_create"):
        return HostMemory()
    own = os.memfd_create("lisa-weights") if ranks.is_first else None
    said = ranks.exchange("host memory", f"{os.getpid()} {own}")
    wait = partial(ranks.exchange, "weights in host memory")
    if own is not None:
        return SharedMemory(own, True, wait)
    process, file = map(int, said[ranks.of_machine.start].split())
    try:
        return SharedMemory(SharedMemory.file_of(process, file), False, wait)
    except OSError as error:
        raise RuntimeError(
            f"the memory of process {process}, rank {ranks.of_machine.start}, cannot be shared: "
            f"{reason(error)}\n    hint: start all ranks of a machine as one user in one container"
        ) from None
