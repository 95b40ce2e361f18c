"""The GPUs as the driver (NVML) counts them.

NVML creates no CUDA context, so a query takes no memory on the card. What cannot be queried is
None and stays None; a missing module, driver or card is a result, not an error.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from types import ModuleType
from typing import Any

from advisor.machine.gpu import UNNAMED, Gpu, Platform
from profiles.findings import Finding
from profiles.gpu_slips import SHARES_MEMORY
from profiles.gpus import gpu_by_nvml

MOST_CARDS, MOST_INSTANCES, MOST_BYTES = 256, 8, 2**44  # larger answers are garbage
# "GRID V100D-16C", "NVIDIA A10-24Q", "NVIDIA A100-4-20C", "GRID A100D-10CME", "A16-2B4".
VGPU_NAME = re.compile(r"\bGRID\b|-\d+(?:[ABQ]\d?|C(?:ME)?)$", re.IGNORECASE)
# Of devices on one die with the host's memory, as SHARES_MEMORY has their names.
SHARING_CAPABILITIES = {(5, 3), (6, 2), (7, 2), (8, 7), (11, 0), (12, 1)}


def probe_nvml(system: Platform) -> tuple[dict[str, Any], list[Finding]]:
    """Driver facts and every GPU, visible or not; notes on what could not be queried."""
    try:
        import pynvml
    except ImportError:
        fix = "pip install nvidia-ml-py"
        return {}, [Finding("nvml", "the Python module pynvml is not installed", fix=fix)]
    except Exception as error:
        fix = "pip install --force-reinstall nvidia-ml-py"
        return {}, [Finding("nvml", "the Python module pynvml is broken", str(error), fix)]
    try:
        pynvml.nvmlInit()
    except Exception as error:
        return {}, [Finding("nvml", "no NVIDIA driver answers", str(error), _driver_hint(system))]
    notes: list[Finding] = []
    gpus: list[Gpu] = []
    try:
        count = _whole(_ask(pynvml, "nvmlDeviceGetCount"), MOST_CARDS)
        if count is None:
            what = "the NVIDIA driver does not say how many GPUs there are"
            notes.append(Finding("nvml", what, fix=_driver_hint(system)))
        for index in range(count or 0):
            gpus += _card(pynvml, index, notes)
        facts = {
            "gpus": gpus,
            "driver_version": _text(_ask(pynvml, "nvmlSystemGetDriverVersion")),
            "cuda_driver_version": _cuda_version(pynvml),
        }
        return facts, notes
    except Exception as error:
        # Only a lost card's error reaches this line: the results before it are kept.
        what = "the NVIDIA driver stopped answering"
        notes.append(Finding("nvml", what, str(error), _driver_hint(system)))
        return {"gpus": gpus}, notes
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()


def _driver_hint(system: Platform) -> str:
    if system == "wsl":
        return "install the NVIDIA driver on Windows, none inside WSL, then run nvidia-smi"
    if system == "darwin":
        return "macOS has no NVIDIA driver"
    return "run nvidia-smi; in a container, start it with --gpus all"


def _card(nvml: ModuleType, index: int, notes: list[Finding]) -> list[Gpu]:
    """Card `index` as one Gpu, or its MIG instances as one Gpu each."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mig = _mig_is_on(nvml, handle)
        # A card that hides its mode may still be cut: as whole, its memory would be too large.
        instances = [] if mig is False else _mig_instances(nvml, handle, index, bool(mig), notes)
        return instances if mig or instances else [_gpu(nvml, handle, index, notes)]
    except Exception as error:
        return [_lost(index, error, notes)]


def _mig_instances(
    nvml: ModuleType, handle: Any, index: int, known: bool, notes: list[Finding]
) -> list[Gpu]:
    """The MIG instances of one card; memory is asked of each instance, not of the card.

    `known`: the card has said that it is cut.
    """
    parent = _uuid(nvml, handle)
    capability = _capability(nvml, handle)
    slots = _whole(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle), MOST_INSTANCES)
    instances = []
    for slot in range(MOST_INSTANCES if slots is None else slots):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except Exception as error:
            if _is_lost(nvml, error):
                raise
            continue  # an empty slot
        gpu = _gpu(nvml, instance, index, notes)
        inherited = {
            "mig_parent": parent or f"GPU {index}",
            "compute_capability": gpu.compute_capability or capability,
        }
        instances.append(gpu.model_copy(update=inherited))
    if known and not instances:
        what = "MIG is on, but no instance was made: CUDA cannot use the card"
        notes.append(Finding(f"gpu {index}", what, fix="make one with nvidia-smi mig -cgi ... -C"))
    return instances


def _lost(index: int, error: Exception, notes: list[Finding]) -> Gpu:
    fix = "reset the card or restart the machine; the other cards are not affected"
    notes.append(Finding(f"gpu {index}", "does not answer and is left out", str(error), fix))
    return Gpu(index=index, lost=str(error))


def _gpu(nvml: ModuleType, handle: Any, index: int, notes: list[Finding]) -> Gpu:
    """Facts about one device. Raises NVML's error when the card itself is lost."""
    where = f"gpu {index}"
    name = _text(_ask(nvml, "nvmlDeviceGetName", handle))
    if name is None:
        notes.append(Finding(where, "does not report its name: its memory alone decides"))
        name = UNNAMED
    capability = _capability(nvml, handle)
    memory = _memory(nvml, handle, where, name, capability, notes)
    display = _whole(_ask(nvml, "nvmlDeviceGetDisplayActive", handle), 1)
    count, process_bytes = _other_processes(nvml, handle)
    if capability is None:
        card = gpu_by_nvml(name, memory.get("total_bytes"))
        capability = None if card is None else card.compute_capability
        what = "does not report its compute capability: "
        what += "a recent one is assumed" if card is None else "that of the name is taken"
        notes.append(Finding(where, what, name))
    return Gpu(
        index=index,
        uuid=_uuid(nvml, handle),
        name=name,
        compute_capability=capability,
        display_active=None if display is None else bool(display),
        ecc=_first(_ask(nvml, "nvmlDeviceGetEccMode", handle)),
        pcie=_pcie(nvml, handle),
        wddm=_is_wddm(nvml, handle),
        vgpu=_is_vgpu(nvml, handle, name),
        other_processes=count,
        other_process_bytes=process_bytes,
        **memory,
    )


def _uuid(nvml: ModuleType, handle: Any) -> str | None:
    text = _text(_ask(nvml, "nvmlDeviceGetUUID", handle))
    return text if text is not None and text.startswith(("GPU-", "MIG-")) else None


def _capability(nvml: ModuleType, handle: Any) -> tuple[int, int] | None:
    pair = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    major, minor = _whole(pair[0], 99), _whole(pair[1], 9)
    return (major, minor) if major and minor is not None else None


def _pcie(nvml: ModuleType, handle: Any) -> str | None:
    generation = _whole(_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle), 20)
    lanes = _whole(_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle), 64)
    return None if generation is None or lanes is None else f"{generation}.0 x{lanes}"


def _is_wddm(nvml: ModuleType, handle: Any) -> bool | None:
    """Whether Windows manages the card's memory (WDDM), and moves it to the host when short."""
    model = _ask(nvml, "nvmlDeviceGetDriverModel", handle)
    kind = model[0] if isinstance(model, (list, tuple)) and model else model
    number = _whole(kind, 9)
    return None if number is None else number == 0  # NVML_DRIVER_WDDM


def _is_vgpu(nvml: ModuleType, handle: Any, name: str) -> bool | None:
    """Whether the card is a virtual GPU, by its name or by what NVML says."""
    if VGPU_NAME.search(name):
        return True
    mode = _whole(_ask(nvml, "nvmlDeviceGetVirtualizationMode", handle), 9)
    return None if mode is None else mode == 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU


def _first(pair: Any) -> bool | None:
    number = _whole(pair[0], 1) if isinstance(pair, (list, tuple)) and pair else None
    return None if number is None else bool(number)


def _memory(
    nvml: ModuleType,
    handle: Any,
    where: str,
    name: str,
    capability: tuple[int, int] | None,
    notes: list[Finding],
) -> dict[str, Any]:
    """Total, free, used and reserved bytes; empty when the card does not say.

    Version 2 separates the driver's own share. Old drivers, WSL and old modules know version 1
    only, and each reports that differently: however version 2 fails, version 1 is queried.
    """
    errors: list[Exception] = []
    for version in (2, 1):
        try:
            if version == 2:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
            else:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, free, used = (
                _whole(getattr(memory, part, None), MOST_BYTES)
                for part in ("total", "free", "used")
            )
            # Some drivers report success and zeros, or more free than there is.
            if not total or free is None or free > total or (not free and not used):
                raise ValueError("it answers with no sensible numbers")
            reserved = getattr(memory, "reserved", None) if version == 2 else None
            return {
                "total_bytes": total,
                "free_bytes": free,
                "used_bytes": used,
                "reserved_bytes": _whole(reserved, total),
            }
        except Exception as error:
            if _is_lost(nvml, error):
                raise
            errors.append(error)
    unsupported = getattr(nvml, "NVMLError_NotSupported", ())
    shares = SHARES_MEMORY.search(name) or capability in SHARING_CAPABILITIES
    # The host's memory is counted only for a device that is known to have none of its own.
    if shares and all(isinstance(error, unsupported) for error in errors):
        what = "has no memory of its own: it shares the host's, and so does every other process"
        notes.append(Finding(where, what, name))
        return {"unified_memory": True}
    fix = "name its size with --vram, such as --vram 8GiB"
    what = f"{name} does not say how much memory it has"
    notes.append(Finding(where, what, str(errors[-1]), fix))
    return {}


def _other_processes(nvml: ModuleType, handle: Any) -> tuple[int | None, int | None]:
    """Processes on the card beside this one, and their bytes (None under WDDM)."""
    bytes_by_pid: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        processes = _ask(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle)
        if not isinstance(processes, (list, tuple)):
            return None, None
        # A process that computes and draws is in both lists with the same bytes.
        for process in processes:
            pid = _whole(getattr(process, "pid", None), 2**32)
            if pid is None:
                return None, None
            bytes_by_pid[pid] = _whole(getattr(process, "usedGpuMemory", None), MOST_BYTES)
    bytes_by_pid.pop(os.getpid(), None)
    known = [used for used in bytes_by_pid.values() if used is not None]
    return len(bytes_by_pid), sum(known) if len(known) == len(bytes_by_pid) else None


def _mig_is_on(nvml: ModuleType, handle: Any) -> bool | None:
    """Whether the card is cut into instances; None if it does not report it."""
    return _first(_ask(nvml, "nvmlDeviceGetMigMode", handle))


def _ask(nvml: ModuleType, question: str, *arguments: Any) -> Any:
    """The answer, or None where there is none, whatever the reason. Raises for a lost card.

    Beside NVML's own errors, pynvml raises UnicodeDecodeError for garbled text, and an old one
    has not every function.
    """
    try:
        return getattr(nvml, question)(*arguments)
    except Exception as error:
        if _is_lost(nvml, error):
            raise
        return None


def _is_lost(nvml: ModuleType, error: Exception) -> bool:
    """Whether `error` says that the card has fallen off the bus."""
    return isinstance(error, getattr(nvml, "NVMLError_GpuIsLost", ()))


def _whole(value: Any, most: int) -> int | None:
    """`value` if it is a whole number from 0 to `most`, else None: NVML fills in garbage."""
    whole = isinstance(value, int) and 0 <= value <= most
    return int(value) if whole else None


def _cuda_version(nvml: ModuleType) -> str | None:
    number = _whole(_ask(nvml, "nvmlSystemGetCudaDriverVersion"), 10**6)
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _text(value: Any) -> str | None:
    """`value` as text, or None where it is none that can be read."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or "\ufffd" in text or not text.isprintable():
        return None
    return text.strip() or None
