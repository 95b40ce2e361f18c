"""What an out-of-memory error is, and the report that a run writes about it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from torch import Tensor

from profiles.files import write_whole
from profiles.plan import Plan
from profiles.shortage import Shortage
from trainer.hardware import room, versions
from trainer.model.footprint import component_of
from trainer.model.segmentation_model import SegmentationModel
from trainer.run.shortages import REPORT, new_place

# cudaErrorMemoryAllocation: raised by code that bypasses the allocator.
ALLOCATION_FAILED = 2


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that the card's memory ran out.

    Judged by type, except for two libraries that allocate memory of their own: only the text tells
    that it ran out. cuBLAS raises a plain RuntimeError, NCCL the error that it also raises when a
    process is lost.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return getattr(error, "error_code", None) == ALLOCATION_FAILED
    text = str(error) if isinstance(error, RuntimeError) else ""
    of_nccl = "NCCL" in text and ("out of memory" in text or "Failed to CUDA calloc" in text)
    return of_nccl or "CUBLAS_STATUS_ALLOC_FAILED" in text


def bytes_by_component(
    model: SegmentationModel, optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Bytes of tensors on the card, by the component names of the forecast."""
    held = [(component_of(model, name, tensor), tensor) for name, tensor in model.on_card()]
    held += [("gradients", p.grad) for p in model.parameters() if p.grad is not None]
    state = [value for of in optimizer.state.values() for value in of.values()]
    held += [("optimizer state", value) for value in state if isinstance(value, Tensor)]
    found: dict[str, int] = {}
    for name, tensor in held:
        if tensor.is_cuda:
            found[name] = found.get(name, 0) + tensor.nbytes
    rest = torch.cuda.max_memory_allocated() - sum(found.values())
    return found | {"the rest": max(0, rest)}


def write_report(
    folder: Path,
    plan: Plan,
    error: BaseException,
    reached: tuple[int, SegmentationModel, torch.optim.Optimizer] | None,
    before: tuple[int, int] | None,
) -> Path:
    """Write a report of an out-of-memory error into the run folder; returns the report's folder.

    `reached`: step, model and optimizer, if the run got that far. `before`: the card's limit and
    the bytes of other processes, before the run allocated anything.
    """
    now, card = room(plan), torch.cuda.is_initialized()
    notes = getattr(error, "__notes__", ["loading"])
    shortage = Shortage(
        plan=plan,
        phase=notes[0],
        step=reached[0] if reached else 0,
        error=str(error).splitlines()[0] if str(error) else type(error).__name__,
        gpu=torch.cuda.get_device_name() if card else None,
        allocated_bytes=torch.cuda.max_memory_allocated() if card else None,
        reserved_bytes=torch.cuda.max_memory_reserved() if card else None,
        limit_bytes=now[0] if now else None,
        outside_bytes=now[1] if now else None,
        limit_before_bytes=before[0] if before else None,
        outside_before_bytes=before[1] if before else None,
        components=bytes_by_component(*reached[1:]) if reached and card else {},
        versions=versions(),
    )
    place = new_place(folder)
    if card:
        with gzip.open(place / "pool.json.gz", "wt", encoding="utf-8") as file:
            json.dump(torch.cuda.memory_snapshot(), file)
    write_whole(place / REPORT, shortage.model_dump_json(indent=2) + "\n")
    return place
