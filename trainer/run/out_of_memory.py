"""Out of memory: the report that a run writes, and the new process that replaces it.

An out-of-memory error leaves the process in an unknown state and its memory pool fragmented, so it
does not try again. It writes a report and is replaced by `lisa-train --resume RUN`, which chooses a
smaller plan before it uses the card.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from profiles.environment import python_module
from profiles.files import sweep, write_whole
from profiles.plan import Plan
from profiles.shortage import Shortage
from profiles.text import argument, operand
from trainer.hardware import room, versions
from trainer.model.footprint import component_of
from trainer.model.segmentation_model import SegmentationModel

FOLDER, REPORT, ANSWER = "out-of-memory", "shortage.json", "answer.json"
# cudaErrorMemoryAllocation: raised by code that bypasses the allocator.
ALLOCATION_FAILED = 2


class OutOfMemory(RuntimeError):
    """The run ran out of memory; the report is in its run folder."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that the card's memory ran out.

    Judged by type, except for cuBLAS: its handles allocate memory, and it raises a plain
    RuntimeError that only its text identifies.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return getattr(error, "error_code", None) == ALLOCATION_FAILED
    return isinstance(error, RuntimeError) and "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


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
    place = _new_place(folder / FOLDER)
    if card:
        with gzip.open(place / "pool.json.gz", "wt", encoding="utf-8") as file:
            json.dump(torch.cuda.memory_snapshot(), file)
    write_whole(place / REPORT, shortage.model_dump_json(indent=2) + "\n")
    return place


def _new_place(parent: Path) -> Path:
    """An empty numbered folder; each of several processes gets its own."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        try:
            (parent / f"{number:03}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{number:03}"
    raise OutOfMemory(f"{parent}: too many out-of-memory errors")


def remove_unfinished(folder: Path) -> None:
    """Remove reports in a run folder whose process was killed while it wrote them."""
    for place in (folder / FOLDER).glob("*/"):
        if not (place / REPORT).exists():
            shutil.rmtree(place, ignore_errors=True)
        else:
            sweep(place, (ANSWER,))


def shortages(folder: Path) -> dict[Path, Shortage]:
    """The reports in a run folder by their folders, oldest first; unreadable ones are left out."""
    found = {}
    for place in sorted((folder / FOLDER).glob("*/")):
        try:
            text = (place / REPORT).read_text(encoding="utf-8")
            found[place] = Shortage.model_validate_json(text)
        except (OSError, ValueError):
            continue  # the process was killed while it wrote
    return found


def unhandled(folder: Path) -> Path | None:
    """The folder of the last report, if the run has not been resumed since."""
    places = list(shortages(folder))
    return places[-1] if places and not (places[-1] / ANSWER).exists() else None


def write_answer(place: Path, document: dict[str, Any]) -> None:
    """Write beside a report what the run continues with."""
    write_whole(place / ANSWER, json.dumps(document, indent=2) + "\n")


def replace_process(folder: Path) -> NoReturn:
    """Become `lisa-train --resume FOLDER`: the same process id, with the card's memory freed."""
    for child in multiprocessing.active_children():  # data workers, which wait for their parent
        child.kill()
        child.join()
    if sys.platform == "win32":  # has no exec: the parent would see the process end
        raise OutOfMemory(f"out of memory; lisa-train --resume {argument(folder)} continues it")
    command = python_module("trainer.cli", "--resume", operand(folder))
    os.execv(sys.executable, command)
