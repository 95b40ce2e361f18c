"""What a run may take on a card: free memory, less the context and a margin.

Bytes inside; each number carries its basis.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from profiles.compiled_layers import moves_of
from profiles.exchange import exchange
from profiles.gpus import GpuProfile
from profiles.host_memory import pinned_bytes
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.sizes import GIB, MIB, gib, mib
from profiles.tested import TestedRow, Verdict

Basis = Literal["exact", "tested", "forecast", "measured", "policy"]

WHAT_IF_KEPT_BYTES = round(0.2 * GIB)  # "8 GB" cards show 7.6-8.0 GiB
# Windows' own desktop and what its driver sets aside; 0.5-1.2 GiB are usual.
WINDOWS_KEPT_BYTES = round(0.9 * GIB)
WHAT_IF_HOST_BYTES = 16 * GIB  # assumed for each card that is not in this machine
HOST_PROCESS_BYTES = 3 * GIB  # Python, torch and CUDA's host side, where host and GPU share memory
HOST_SHARE = 0.85  # of the available host memory; the rest is the system's and the page cache's
PINNED_SHARE = 0.5  # of all host memory: Windows allows no more, and elsewhere the system stalls
ERRORS_FILE = Path(__file__).resolve().parents[2] / "profiles" / "forecast_errors.json"
QUANTILE = 0.95
NONE = Evidence()
FEWEST_ROWS = 20  # of a GPU model, before its own errors are trusted alone

# By how much the pool exceeded its forecast at worst, without expandable segments, rounded up: the
# driver chooses addresses, and they decide which of two equal blocks is reused (docs/forecast.md).
PLAIN_DOUBT = {"expandable": 0.0, "whole": 0.02}
# The same for 86 compiled plans that were replayed with plain layers, as is code not seen before.
UNKNOWN_CODE_DOUBT = {"expandable": 0.0472, "whole": 0.135}


class Bytes(Frozen):
    """A number of bytes and where it comes from."""

    bytes: int
    basis: Basis
    source: str


class HostBudget(Bytes):
    """What a run may take of host memory, and how much of that it may pin."""

    pinned_bytes: int | None = Field(None, description="at most pinned; None = unknown")

    def shortage(self, plan: Plan, size: int) -> str:
        """What is lacking if host memory does not hold `plan` of `size` bytes; else ''."""
        if size > self.bytes:
            return f"host memory: {gib(size)} needed, {gib(self.bytes)} usable"
        if self.pinned_bytes is not None and (pinned := pinned_bytes(plan)) > self.pinned_bytes:
            most = f"{gib(self.pinned_bytes)}, half of the machine's memory, may be"
            return f"host memory: {gib(pinned)} would be pinned, {most}"
        return ""


class Budget(Frozen):
    """What the pool of a run may take: usable = free - context - margin; and its host memory."""

    free: Bytes
    context: Bytes
    margin: Bytes
    usable: Bytes
    host: HostBudget | None = None

    @property
    def cap_bytes(self) -> int:
        """What the pool may take with no margin kept."""
        return max(0, self.free.bytes - self.context.bytes)

    def host_shortage(self, plan: Plan, size: int) -> str:
        """Why host memory does not hold `plan` with its `size` bytes; empty if it does."""
        return self.host.shortage(plan, size) if self.host is not None else ""


def size_text(size: int) -> str:
    """`size` bytes for a command line: `8GiB`, or `8GB` where that is the round number."""
    for unit, name in ((GIB, "GiB"), (10**9, "GB"), (MIB, "MiB"), (10**6, "MB")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size / GIB:.10g}GiB"


def what_if_gpu(vram_bytes: int, windows: bool = False) -> Gpu:
    """A card that is not in this machine, known only by its size."""
    kept = WINDOWS_KEPT_BYTES if windows else WHAT_IF_KEPT_BYTES
    return Gpu(
        index=0,
        name=f"{vram_bytes / GIB:.4g} GiB card",
        total_bytes=vram_bytes,
        free_bytes=max(0, vram_bytes - kept),
    )


def named_gpu(profile: GpuProfile, windows: bool = False) -> Gpu:
    """A card of the catalogue that is not in this machine."""
    facts = {"name": profile.name, "compute_capability": profile.compute_capability}
    return what_if_gpu(profile.visible_bytes, windows).model_copy(update=facts)


def budget_of(
    gpu: Gpu,
    machine: Machine,
    what_if_ram: int | None = None,
    evidence: Evidence = NONE,
    nccl: int = 0,
) -> Budget | None:
    """The budget on `gpu`, or None where its free memory is unknown.

    A card that is not here is taken to be in a machine with `what_if_ram` bytes of host memory. The
    user's own rows in the `evidence` count towards the margin by their forecasts and peaks. `nccl`:
    bytes that NCCL takes, if the card is one of several.
    """
    free = gpu.free_bytes
    what_if = what_if_ram is not None
    basis: Basis = "policy" if what_if else "exact"
    kept = (gpu.total_bytes or 0) - (free or 0)
    source = f"size less {gib(kept)} of driver and display" if what_if else "driver (NVML)"
    if free is None and gpu.unified_memory and machine.host_available_bytes is not None:
        free = max(0, machine.host_available_bytes - HOST_PROCESS_BYTES)
        basis = "policy"
        source = f"shared host memory less {gib(HOST_PROCESS_BYTES)} for the process"
    if free is None:
        return None
    margin = margin_of(gpu, free, evidence.own_rows)
    context = evidence.context(gpu, machine)
    beside = context.bytes(pinned=True) + nccl
    pinning = f", {mib(context.pinning_bytes)} of it for pinned host tensors"
    libraries = f"CUDA context and libraries{pinning}, {context.source}"
    usable = max(0, free - beside - margin.bytes)
    return Budget(
        free=Bytes(bytes=free, basis=basis, source=source),
        context=Bytes(
            bytes=beside,
            basis=context.basis,
            source=f"{libraries}; {exchange().nccl_source}" if nccl else libraries,
        ),
        margin=margin,
        usable=Bytes(bytes=usable, basis="policy", source="free - context - margin"),
        host=_host_budget(machine, what_if_ram),
    )


def margin_for(plan: Plan, pool: int, margin_bytes: int) -> int:
    """What must stay free beside the plan's pool: the card's margin, or the pool's own if larger.

    Bytes. Every verdict and every text about a forecast takes the margin from here.
    """
    return max(margin_bytes, round(_doubt(plan) * pool))


def _doubt(plan: Plan) -> float:
    """By what share of its forecast the pool of such a plan may be larger than forecast."""
    if not plan.compile:
        return PLAIN_DOUBT[plan.segments]
    shares: dict[str, float] = _errors()["compiled_doubt"]
    return (shares if moves_of(plan) else UNKNOWN_CODE_DOUBT)[plan.segments]


@cache
def _errors() -> dict[str, Any]:
    """What benchmarks/forecast.py publishes."""
    errors: dict[str, Any] = json.loads(ERRORS_FILE.read_text(encoding="utf-8"))
    return errors


def margin_of(gpu: Gpu, free: int, rows: Iterable[TestedRow] = ()) -> Bytes:
    """What is left free on `gpu`: by how much forecasts of the pool were too low before.

    The 95 % quantile of the shortfalls on this GPU model, in shipped rows and the user's. A model
    with few rows gets the quantile of all models. At least 3 %, by policy.
    """
    shipped: dict[str, list[float]] = _errors()["pool_shortfalls"]
    own = [
        (row.gpu, 1 - row.forecast_bytes / row.peak_reserved_bytes)
        for row in rows
        if row.source == "user" and row.forecast_bytes and row.peak_reserved_bytes
    ]
    here = [*shipped.get(gpu.name, ()), *(short for name, short in own if name == gpu.name)]
    everywhere = [*chain(*shipped.values()), *(short for _, short in own)]
    enough = len(here) >= FEWEST_ROWS
    shortfalls = here if enough else everywhere
    share = max(0.0, sorted(shortfalls)[ceil(QUANTILE * len(shortfalls)) - 1])
    least_share, least = (0.0, 0.15) if enough else (0.03, 0.30)
    size = max(round(max(share, least_share) * free), round(least * GIB))
    where = "on this GPU model" if enough else "on other GPUs, none or few on this model"
    source = (
        f"forecasts fell short by at most {share:.1%} in 95 % of {len(shortfalls)} rows {where}"
    )
    source += f"; at least {least:.2f} GiB" + (f" and {least_share:.0%}" if least_share else "")
    return Bytes(bytes=size, basis="tested" if enough else "policy", source=source)


def _host_budget(machine: Machine, assumed: int | None) -> HostBudget | None:
    """Host memory of this machine, or half of the `assumed` bytes of another one."""
    if assumed is not None:
        source = f"half of {gib(assumed)} is assumed free (--ram)"
        half = assumed // 2
        return HostBudget(bytes=half, basis="policy", source=source, pinned_bytes=half)
    if machine.host_available_bytes is None:
        return None
    total = machine.host_total_bytes
    return HostBudget(
        bytes=round(HOST_SHARE * machine.host_available_bytes),
        basis="exact",
        source=f"{HOST_SHARE:.0%} of what the system has available",
        pinned_bytes=None if total is None else round(PINNED_SHARE * total),
    )


def judge(needed: int, budget: Budget, spills: bool) -> Verdict:
    """How `needed` bytes of tensors fit in `budget`; `spills`: the driver swaps to the host."""
    if needed <= budget.usable.bytes:
        return "FITS"
    if needed <= budget.cap_bytes:
        return "TIGHT"
    return "SPILLS" if spills else "OOM"
