"""What a probe finds: GPUs, and the machine that they are in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from profiles.findings import Finding
from profiles.records import Frozen

Platform = Literal["linux", "wsl", "windows", "darwin"]
UNNAMED = "unknown GPU"


class Gpu(Frozen):
    """One CUDA device: a card, or one MIG instance of a card. Bytes as NVML reports them."""

    index: int = Field(description="NVML's index of the card; not always CUDA's")
    uuid: str | None = None
    name: str = UNNAMED
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None
    reserved_bytes: int | None = Field(None, description="kept by driver and firmware")
    unified_memory: bool = Field(False, description="no memory of its own: it shares the host's")
    compute_capability: tuple[int, int] | None = None
    display_active: bool | None = None
    other_processes: int | None = Field(None, description="processes on the card beside this one")
    other_process_bytes: int | None = None
    ecc: bool | None = Field(None, description="error correction is on; None: the card has none")
    pcie: str | None = Field(None, description="generation and lanes at most, such as 4.0 x16")
    wddm: bool | None = Field(None, description="Windows' driver model, which spills; else None")
    mig_parent: str | None = Field(None, description="UUID of the card a MIG instance is cut from")
    vgpu: bool | None = Field(None, description="a share of a card, lent to a virtual machine")
    lost: str | None = Field(None, description="why the card cannot be used")

    @property
    def bf16(self) -> bool | None:
        """Whether the card computes in bf16 (compute capability 8.0 and later)."""
        return None if self.compute_capability is None else self.compute_capability >= (8, 0)


class Machine(Frozen):
    """What was probed."""

    gpus: tuple[Gpu, ...] = Field((), description="the visible ones, in NVML's order")
    driver_version: str | None = None
    cuda_driver_version: str | None = Field(None, description="newest CUDA the driver serves")
    host_total_bytes: int | None = None
    host_available_bytes: int | None = None
    cpu_count: int | None = Field(None, description="cores that a run here may keep busy")
    cpu_model: str | None = None
    platform: Platform = "linux"
    notes: tuple[Finding, ...] = ()

    @property
    def driver_branch(self) -> int | None:
        """The driver's major version; under WSL it is that of Windows' driver."""
        head = (self.driver_version or "").partition(".")[0]
        return int(head) if head.isascii() and head.isdecimal() else None
