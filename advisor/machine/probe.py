"""This machine: the GPUs that CUDA will see, its host memory and its CPU."""

from __future__ import annotations

import os
import platform as platform_module
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from advisor.machine.gpu import Gpu, Machine, Platform
from advisor.machine.nvml import probe_nvml
from profiles.environment import usable_cores
from profiles.findings import Finding


def probe(environ: Mapping[str, str] | None = None) -> Machine:
    """This machine as it is now. Raises nothing for a missing or broken driver.

    `environ` replaces the process environment (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER).
    """
    environ = os.environ if environ is None else environ
    system = _platform()
    facts, notes = probe_nvml(system)
    cards: list[Gpu] = facts.pop("gpus", [])
    visible, more = _visible(cards, environ)
    host_total, host_available = _host_memory()
    return Machine(
        gpus=tuple(visible),
        host_total_bytes=host_total,
        host_available_bytes=host_available,
        cpu_count=usable_cores(),
        cpu_model=_cpu_model(),
        platform=system,
        notes=(*notes, *more, *([] if cards else _other_vendors(system))),
        **facts,
    )


def _visible(cards: list[Gpu], environ: Mapping[str, str]) -> tuple[list[Gpu], list[Finding]]:
    """The GPUs that CUDA will see, and notes on how that was worked out.

    CUDA_VISIBLE_DEVICES holds indices or UUIDs (a prefix will do); CUDA stops at the first entry
    that names no device, and refuses a list that names one twice.
    """
    notes: list[Finding] = []
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return cards, notes
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in wanted.split(",")):
        gpu = _named(cards, entry)
        if gpu is None:
            if entry not in ("", "-1"):
                what = "names no device: CUDA ignores it and all names after it"
                notes.append(Finding("CUDA_VISIBLE_DEVICES", what, entry))
            break
        if gpu in chosen:
            what = "names a device twice, so CUDA shows none at all"
            return [], [Finding("CUDA_VISIBLE_DEVICES", what, wanted, "name each device once")]
        chosen.append(gpu)
    if cards and not chosen:
        fix = "unset CUDA_VISIBLE_DEVICES"
        notes.append(Finding("CUDA_VISIBLE_DEVICES", "hides every GPU", repr(wanted), fix))
    by_index = any(part.strip().isdecimal() for part in wanted.split(","))
    order = environ.get("CUDA_DEVICE_ORDER")
    if by_index and order != "PCI_BUS_ID" and len({card.index for card in cards}) > 1:
        what = "indices were read in PCI order, but CUDA counts the fastest GPU first"
        fix = "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID"
        notes.append(Finding("CUDA_VISIBLE_DEVICES", what, wanted, fix))
    return chosen, notes


def _named(cards: list[Gpu], entry: str) -> Gpu | None:
    """The one GPU that an entry of CUDA_VISIBLE_DEVICES names, or None."""
    if entry.isdecimal():
        # Of a card cut into MIG instances, CUDA shows the first one.
        return next((card for card in cards if card.index == int(entry)), None)
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    found = [card for card in cards if (card.uuid or "").startswith(entry)]
    parents = [card for card in cards if (card.mig_parent or "").startswith(entry)]
    if len({card.mig_parent for card in parents}) == 1 and not found:
        return parents[0]
    return found[0] if len(found) == 1 else None


def _platform() -> Platform:
    if sys.platform == "win32":
        return "windows"
    if sys.platform == "darwin":
        return "darwin"
    return "wsl" if "microsoft" in platform_module.release().lower() else "linux"


def _host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int | None]:
    """Total and available bytes of host memory: the machine's, or the container's if less."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    # Version 2, then version 1; "max" or a number beyond the machine means no limit.
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            limit = int((cgroup / limit_file).read_text())
            used = int((cgroup / used_file).read_text())
            return min(total, limit), max(0, min(available, limit - used))
    return total, available


def _other_vendors(
    system: Platform, drm: Path = Path("/sys/class/drm"), processor: str | None = None
) -> list[Finding]:
    """A note on a GPU of another maker, and what works there."""
    works = "lisa-tiny trains on the CPU; 7b and 13b need an NVIDIA GPU, or a what-if card: --gpu"
    processor = platform_module.machine() if processor is None else processor
    if system == "darwin" and processor == "arm64":
        return [Finding("Apple GPU", "is not used: the 4-bit kernels are CUDA's", fix=works)]
    for vendor in sorted(drm.glob("card*/device/vendor")):
        with suppress(OSError):
            if vendor.read_text().strip() == "0x1002":
                what = "is not used: nothing here was measured under ROCm"
                return [Finding("AMD GPU", what, fix=works)]
    return []


def _cpu_model() -> str | None:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform_module.processor() or None
