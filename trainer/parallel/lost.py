"""When a process of a group is lost: after how long the others end, and what they say.

A process that ends, for whatever reason, closes its connections, and the others notice at once. A
machine that loses power or network closes nothing: only a timeout notices that.

gloo raises an error in both cases. NCCL waits on the card for ever, so code that reads its results
checks meanwhile whether the other processes still run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# One machine may compute features for hours that another one has cached already.
STARTING = timedelta(days=1)
# Of a training: longer than a save or the uneven end of an evaluation takes.
SECONDS = 600
VARIABLE = "LISA_GROUP_TIMEOUT"  # another number of seconds
# After that time NCCL's own watchdog waits for longer, and then ends the process by SIGABRT.
LATER = timedelta(seconds=30)
LOOK_SECONDS = 0.001  # between two looks at the card


class CardWaits(RuntimeError):
    """The card waits for a process that is lost. Nothing on it can be read: no save is possible."""


def set_up_nccl(environment: MutableMapping[str, str]) -> None:
    """Let a broken group end the process and never its kernels, whose results would be garbage.

    torch's launchers set 1: kernels end first, and a read that waits for them takes what is there.
    """
    environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "3"
    # The watchdog's report, for people who look into NCCL, takes a minute otherwise.
    environment.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    environment.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000")


def silence(environment: Mapping[str, str] = os.environ) -> timedelta:
    """How long a process waits in training for another one. Raises ValueError."""
    text = environment.get(VARIABLE, "") or str(SECONDS)
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{VARIABLE}: got {text!r}; allowed: a whole number of seconds, 1 or more")
    return timedelta(seconds=int(text))


def wait_no_longer() -> None:
    """From now on wait as long as `silence` says: all processes are in step.

    Only these functions of torch change the timeout of an existing group.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    if dist.is_initialized():
        _set_pg_timeout(silence() + LATER)
        group = dist.distributed_c10d._get_default_group()
        group._get_backend(torch.device("cpu"))._set_default_timeout(silence())


def read_together(neighbours: Sequence[int], values: Tensor) -> list[float]:
    """The numbers of a tensor [N], after the whole group's work on the card. Raises CardWaits.

    `neighbours`: process ids of this machine's other ranks.
    """
    if values.is_cuda:
        import torch

        done = torch.cuda.Event()
        done.record()
        wait_for_card(done.query, neighbours)
    numbers: list[float] = values.tolist()
    return numbers


def wait_for_card(is_done: Callable[[], bool], neighbours: Sequence[int]) -> None:
    """Wait until the card is done. Raises CardWaits.

    A wait inside CUDA would notice neither a timeout nor a signal.
    """
    import psutil

    until = time.monotonic() + silence().total_seconds()
    while not is_done():
        if not all(map(psutil.pid_exists, neighbours)):
            raise CardWaits("a process of this machine has ended")
        if time.monotonic() > until:
            raise CardWaits("timed out")
        time.sleep(LOOK_SECONDS)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone.

    gloo raises a plain RuntimeError that only its text identifies.
    """
    import torch.distributed as dist

    return isinstance(error, dist.DistError | CardWaits) or (
        type(error) is RuntimeError and "gloo/transport" in str(error)
    )


def is_silence(error: BaseException) -> bool:
    """Whether a lost process was noticed by its silence, not by its end."""
    return "timed out" in str(error).lower()


def what_is_lost(error: BaseException) -> str:
    """What a process that lost another one knows about it."""
    if is_silence(error):
        return f"another process of this run did not answer for {silence().seconds} s"
    return "another process of this run has ended"
