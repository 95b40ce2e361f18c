"""The environment of processes that import torch: variables, usable cores, threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from profiles.places import cache_folder, libraries_caches, usable

CGROUP = Path("/sys/fs/cgroup")
# Both names: torch 2.9 ignores the new one for CUDA, later versions prefer it.
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this project in a process of its own.

    `-P`: `python -m` would put the current folder first on the path, and so run a `numpy.py` that
    happens to be there.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # a launcher's; whole numbers

# accelerate reads dozens of these; the few here do not change what is computed.
_ACCELERATE, _HARMLESS = "ACCELERATE_", ("LOG_LEVEL", "DEBUG_MODE", "ENABLE_RICH", "CPU_AFFINITY")
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
# Variables for which a library accepts a few words and fails on any other.
_WORDS = {
    "ACCELERATE_LOG_LEVEL": (
        "debug",
        "info",
        "warning",
        "warn",
        "error",
        "critical",
        "fatal",
        "notset",
    ),
    "TORCH_DISTRIBUTED_DEBUG": ("off", "info", "detail"),
}
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_OFF = ("", "0", "no", "n", "none", "false", "f", "off", "default")
# MPI's variables: accelerate takes them for a launcher's, and waits for processes that never start.
_MPI = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE")  # fmt: skip


def borrowed(environment: Mapping[str, str]) -> list[str]:
    """Variables of this shell that would make accelerate deviate from the plan.

    DeepSpeed or FSDP, another precision, compiler, device or accumulation, left by another
    project's session. Variables that switch something off are not among them.
    """
    named = (name for name in environment if name.startswith(_ACCELERATE))
    found = [name for name in named if name.removeprefix(_ACCELERATE) not in _HARMLESS]
    return sorted(name for name in found if environment[name].strip().lower() not in _OFF) + [
        name for name in _MPI if name in environment
    ]


def refused(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables whose value would make a library fail, with the values that it accepts."""
    found = {name: ", ".join(words) for name, words in _WORDS.items()
             if environment.get(name, words[0]).lower() not in words}  # fmt: skip
    found |= {name: "whole seconds" for name in _SECONDS
              if not environment.get(name, "10").isdecimal()}  # fmt: skip
    folder = environment.get(_COMPILED)
    if folder and not usable(Path(os.path.abspath(folder))):
        found[_COMPILED] = "a folder that can be written"
    return found


def at_home(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the hub switched off and compiled code in the user's own cache.

    It leaves out what is `borrowed` or `refused`, and PYTHONOPTIMIZE=2 (-OO), which removes the
    docstrings that transformers needs to be imported.

    `PYTHONSAFEPATH` is `-P` for processes that libraries start, such as torch's compilers.
    Three defaults are changed. On CPUs with AVX512-BF16 bitsandbytes would fetch a kernel's code
    from the hub. torch would load compiled code from a folder in /tmp that another user may have
    made first. torch's threads would spin while they wait: 6 times slower on cores that other
    processes use too.
    """
    compiled = cache_folder() / "compiled"
    kept = {_COMPILED: str(compiled), "OMP_WAIT_POLICY": "PASSIVE"}
    foreign = [*borrowed(environment), *refused(environment)]
    foreign += ["PYTHONOPTIMIZE"] * (environment.get("PYTHONOPTIMIZE", "") not in ("", "0", "1"))
    kept |= libraries_caches()
    kept |= {name: value for name, value in environment.items() if name not in foreign}
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may keep busy: by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    import psutil

    physical = psutil.cpu_count(logical=False) or count  # two threads on one core gain nothing
    return max(1, min(count, physical, int(_quota(cgroup) or count)))


def _quota(cgroup: Path) -> float | None:
    """The number of cores that a container may use, by either version of cgroups."""
    two = cgroup / "cpu.max"
    one = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    try:
        if two.exists():
            quota, period = two.read_text(encoding="ascii").split()
        else:
            quota, period = (path.read_text(encoding="ascii").strip() for path in one)
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def own_card() -> int:
    """Number of this process's GPU: each process that a launcher started has its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def threads_for(cores: int, processes: int = 1, workers: int = 0) -> int:
    """Threads for each of `processes`, with one core left for each of its workers."""
    return max(1, cores // max(1, processes) - workers)
