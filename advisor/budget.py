"""What a run may take on a card: free memory, less the context and a margin.

Bytes inside; each number carries its basis.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from advisor.context import context_of
from advisor.probe import Gpu, Machine
from profiles.tested import Verdict

Basis = Literal["exact", "tested", "forecast", "measured", "policy"]

GIB = 2**30
MARGIN_BYTES = round(0.3 * GIB)
MARGIN_SHARE = 0.03
WHAT_IF_KEPT_BYTES = round(0.2 * GIB)  # "8 GB" cards show 7.6-8.0 GiB
HOST_PROCESS_BYTES = 3 * GIB  # Python, torch and CUDA's host side, where host and GPU share memory


class Frozen(BaseModel):
    """Base of the advisor's records: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bytes(Frozen):
    """A number of bytes and where it comes from."""

    bytes: int
    basis: Basis
    source: str


class Budget(Frozen):
    """What the tensors of a run may take: usable = free - context - margin."""

    free: Bytes
    context: Bytes
    margin: Bytes
    usable: Bytes


def gib(number: int) -> str:
    """`number` bytes as text, in GiB."""
    return f"{number / GIB:.2f} GiB"


def what_if_gpu(vram_bytes: int) -> Gpu:
    """A card that is not here, of which only the size is known."""
    return Gpu(
        index=0,
        name=f"{vram_bytes / GIB:.4g} GiB card",
        total_bytes=vram_bytes,
        free_bytes=max(0, vram_bytes - WHAT_IF_KEPT_BYTES),
    )


def budget_of(gpu: Gpu, machine: Machine, what_if: bool = False) -> Budget | None:
    """The budget on `gpu`, or None where its free memory is unknown."""
    free = gpu.free_bytes
    basis: Basis = "policy" if what_if else "exact"
    source = f"size less {gib(WHAT_IF_KEPT_BYTES)} kept" if what_if else "driver (NVML)"
    if free is None and gpu.unified_memory and machine.host_available_bytes is not None:
        free = max(0, machine.host_available_bytes - HOST_PROCESS_BYTES)
        basis = "policy"
        source = f"shared host memory less {gib(HOST_PROCESS_BYTES)} for the process"
    if free is None:
        return None
    margin = max(MARGIN_BYTES, round(MARGIN_SHARE * free))
    context = context_of(gpu, machine)
    usable = max(0, free - context.bytes(pinned=True) - margin)
    return Budget(
        free=Bytes(bytes=free, basis=basis, source=source),
        context=Bytes(
            bytes=context.bytes(pinned=True),
            basis=context.basis,
            source=f"CUDA context and libraries, {context.source}",
        ),
        margin=Bytes(bytes=margin, basis="policy", source="the larger of 0.30 GiB and 3 %"),
        usable=Bytes(bytes=usable, basis="policy", source="free - context - margin"),
    )


def judge(needed: int, budget: Budget, spills: bool) -> Verdict:
    """How `needed` bytes of tensors go into `budget`; `spills`: the driver swaps to the host."""
    if needed <= budget.usable.bytes:
        return "FITS"
    if needed <= budget.free.bytes - budget.context.bytes:
        return "TIGHT"
    return "SPILLS" if spills else "OOM"
