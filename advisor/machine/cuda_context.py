"""What a process takes on a card beside torch's pool: CUDA context, kernels, libraries.

Measured once on a GPU, with lisa-tiny's step in a child process, and kept by driver, card and
library versions; otherwise from the profile of measured cards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
MEASURED = "measured on this GPU"


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


def context_of(
    gpu: Gpu, machine: Machine, kept: Mapping[str, Context], versions: Mapping[str, str]
) -> Context:
    """The context on `gpu`: what was measured there before, else the nearest profile."""
    profile = HOPPER if (gpu.compute_capability or (0, 0)) >= (9, 0) else OTHERS
    return kept.get(key_of(gpu, machine, versions), profile)


def kept_contexts(folder: Path | None = None) -> dict[str, Context]:
    """What was measured on this machine's cards, by key; a damaged file is left out."""
    found = {}
    for path in (cache_folder() / "contexts" if folder is None else folder).glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            plain, pinning = json.loads(read_regular(path))
            found[path.stem] = Context(int(plain), int(pinning), "measured", MEASURED)
    return found


def measure_context(gpu: Gpu, machine: Machine, folder: Path | None = None) -> Context:
    """The context on `gpu`, measured now unless it was before. Raises RehearsalFailed.

    The figure is what NVML shows of the child less torch's pool; where NVML does not report a
    process's memory (WDDM), the profile stands.
    """
    versions = library_versions()
    known = context_of(gpu, machine, kept_contexts(folder), versions)
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
    place = cache_folder() / "contexts" if folder is None else folder
    path = place / f"{key_of(gpu, machine, versions)}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps([plain, pinned - plain]))
    except OSError:
        pass  # a cache that cannot be written is no error
    return Context(plain, pinned - plain, "measured", MEASURED)


def _beside_pool(plan: Plan, gpu: Gpu) -> int | None:
    environment = {"CUDA_VISIBLE_DEVICES": str(gpu.uuid)}
    found = rehearsed(plan, ["--steps", "1"], environment, cache_folder())
    if found.verdict != "FITS":
        raise RehearsalFailed(f"lisa-tiny's step did not run on {gpu.name}: {found.error}")
    if found.process_bytes is None or found.peak_reserved_bytes is None:
        return None
    return found.process_bytes - found.peak_reserved_bytes


def key_of(gpu: Gpu, machine: Machine, versions: Mapping[str, str]) -> str:
    """The name of what was measured on that card with that driver and those libraries."""
    libraries = [versions.get(name, "absent") for name in LIBRARIES]
    parts = [gpu.name, gpu.uuid, machine.driver_version, *libraries]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that memory depends on; "absent" if one is not installed."""
    return {name: installed(name) for name in LIBRARIES}


@cache
def installed(name: str) -> str:
    """The version of a library, "absent" if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
