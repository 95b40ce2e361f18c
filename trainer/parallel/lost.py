"""When a process of a group is lost: after how long the others end, and what they say.

A process that ends, however it does, closes its connections, and the others notice at once. A
machine that loses its power or its network closes nothing: only a timeout notices that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

# One machine may compute features for hours that another one has cached already.
STARTING = timedelta(days=1)
# Of a training: longer than a save or the uneven end of an evaluation takes.
SECONDS = 600
VARIABLE = "LISA_GROUP_TIMEOUT"  # another number of seconds


def silence(environment: Mapping[str, str] = os.environ) -> timedelta:
    """How long a process waits in training for another one. Raises ValueError."""
    text = environment.get(VARIABLE, "") or str(SECONDS)
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{VARIABLE}: got {text!r}; allowed: a whole number of seconds, 1 or more")
    return timedelta(seconds=int(text))


def wait_no_longer() -> None:
    """From now on wait as long as `silence` says: all processes are in step.

    The timeout of a group that exists can be changed by this function of torch alone.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    if dist.is_initialized():
        _set_pg_timeout(silence())


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone.

    gloo raises a plain RuntimeError that only its text identifies.
    """
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "gloo/transport" in str(error)
    )


def what_is_lost(error: BaseException) -> str:
    """What a process that lost another one knows about it."""
    if "timed out" in str(error).lower():
        return f"another process of this run did not answer for {silence().seconds} s"
    return "another process of this run has ended"
