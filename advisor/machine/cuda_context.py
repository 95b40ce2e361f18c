"""What a process takes on a card beside torch's pool: CUDA context, kernels, libraries.

Measured once on a GPU, with lisa-tiny's step in a child process, and kept by driver, card and
library versions; otherwise from the profile of measured cards.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from advisor.machine.gpu import Gpu, Machine
from advisor.rehearsal import RehearsalFailed, rehearsed
from profiles.files import read_regular, write_whole
from profiles.places import cache_folder
from profiles.plan import Plan
from profiles.sizes import MIB

LIBRARIES = ("torch", "bitsandbytes", "transformers")


@dataclass(frozen=True)
class Context:
    """Bytes beside the pool, and how many more with pinned host tensors."""

    plain_bytes: int
    pinning_bytes: int
    basis: Literal["measured", "tested", "policy"]
    source: str

    def bytes(self, pinned: bool) -> int:
        """Bytes for a process that pins host tensors, or does not."""
        return self.plain_bytes + (self.pinning_bytes if pinned else 0)


# Every row of benchmarks/lattice_measured.jsonl, to the MiB.
HOPPER = Context(762 * MIB, 70 * MIB, "tested", "as on an H100 with CUDA 13")
# A T4 was reported with 141 MiB (fitcheck-llm 0.3.1), the H100 above has 762; it grows with the
# card's multiprocessors and the kernels loaded.
OTHERS = Context(512 * MIB, 70 * MIB, "policy", "0.14-0.74 GiB were seen on other cards")


def context_of(gpu: Gpu, machine: Machine, folder: Path | None = None) -> Context:
    """The context on `gpu`: what was measured there before, else the nearest profile."""
    path = _kept(gpu, machine, folder)
    try:
        plain, pinning = json.loads(read_regular(path))
        return Context(int(plain), int(pinning), "measured", "measured on this GPU")
    except (OSError, ValueError, TypeError):
        return HOPPER if (gpu.compute_capability or (0, 0)) >= (9, 0) else OTHERS


def measure_context(gpu: Gpu, machine: Machine, folder: Path | None = None) -> Context:
    """The context on `gpu`, measured now unless it was before. Raises RehearsalFailed.

    The figure is what NVML shows of the child less torch's pool; where NVML does not report a
    process's memory (WDDM), the profile stands.
    """
    known = context_of(gpu, machine, folder)
    if known.basis == "measured" or gpu.uuid is None:
        return known
    plan = Plan.parse({
        "model": "tiny", "weights": "random", "device": "cuda",
        "dtype": "bf16" if gpu.bf16 is not False else "fp16",
        "quantization": "nf4", "cached_encoders": ["mask", "vision"],
    })  # fmt: skip
    plans = plan, plan.override(["host_embeddings=true"])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda plan: _beside_pool(plan, gpu), plans))
    plain, pinned = found
    if plain is None or pinned is None:
        return known
    path = _kept(gpu, machine, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps([plain, pinned - plain]))
    except OSError:
        pass  # a cache that cannot be written is no error
    return Context(plain, pinned - plain, "measured", "measured on this GPU")


def _beside_pool(plan: Plan, gpu: Gpu) -> int | None:
    environment = {"CUDA_VISIBLE_DEVICES": str(gpu.uuid)}
    found = rehearsed(plan, ["--steps", "1"], environment, cache_folder())
    if found.verdict != "FITS":
        raise RehearsalFailed(f"lisa-tiny's step did not run on {gpu.name}: {found.error}")
    if found.process_bytes is None or found.peak_reserved_bytes is None:
        return None
    return found.process_bytes - found.peak_reserved_bytes


def _kept(gpu: Gpu, machine: Machine, folder: Path | None) -> Path:
    parts = [gpu.name, gpu.uuid, machine.driver_version, *library_versions()]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return (cache_folder() / "contexts" if folder is None else folder) / f"{key}.json"


def library_versions() -> list[str]:
    """Versions of the libraries that memory depends on; "absent" if one is not installed."""
    return [installed(name) for name in LIBRARIES]


@cache
def installed(name: str) -> str:
    """The version of a library, "absent" if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
