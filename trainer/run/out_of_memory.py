"""Out of memory: what a run leaves behind, and how a fresh process takes its place.

An out-of-memory step leaves its process in an unknown state, and its pool cut up, so nothing is
tried again in it. It writes down what happened and is replaced by `lisa-train --resume RUN`, which
chooses a smaller plan before it touches the card.
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
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.footprint import component_of

FOLDER, REPORT, ANSWER = "out-of-memory", "shortage.json", "answer.json"
# cudaErrorMemoryAllocation: raised bare by what asks the driver past the allocator.
ALLOCATION_FAILED = 2


class OutOfMemory(RuntimeError):
    """The run ran out of memory and has written down all about it, in its run folder."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error is the card's memory running out, by its type.

    cuBLAS, which takes memory of its own for a handle, has but a plain RuntimeError and its text.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return getattr(error, "error_code", None) == ALLOCATION_FAILED
    return isinstance(error, RuntimeError) and "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def bytes_by_component(model: Lisa, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of tensors on the card by what they are, in the forecast's words."""
    held = [(component_of(name, tensor), tensor) for name, tensor in model.on_card()]
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
    reached: tuple[int, Lisa, torch.optim.Optimizer] | None,
    before: tuple[int, int] | None,
) -> Path:
    """Leave in the run folder what is known of an out-of-memory error; where it lies.

    `reached`: step, model and optimizer, once there are any; `before`: limit and bytes of others
    on the card before the run took any.
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
    """An empty folder, numbered: of several processes each gets its own."""
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
    """What a run folder tells of, the oldest first; what cannot be read is left out."""
    found = {}
    for place in sorted((folder / FOLDER).glob("*/")):
        try:
            text = (place / REPORT).read_text(encoding="utf-8")
            found[place] = Shortage.model_validate_json(text)
        except (OSError, ValueError):
            continue  # the process was killed while it wrote
    return found


def unhandled(folder: Path) -> Path | None:
    """Where the last shortage lies, if the run has not gone on since."""
    places = list(shortages(folder))
    return places[-1] if places and not (places[-1] / ANSWER).exists() else None


def write_answer(place: Path, document: dict[str, Any]) -> None:
    """Write down beside a shortage what the run goes on with."""
    write_whole(place / ANSWER, json.dumps(document, indent=2) + "\n")


def replace_process(folder: Path) -> NoReturn:
    """Become `lisa-train --resume FOLDER`: the same process to the system, with an empty card."""
    for child in multiprocessing.active_children():  # data workers, which wait for their parent
        child.kill()
        child.join()
    if sys.platform == "win32":  # there a process cannot become another one
        raise OutOfMemory(f"out of memory; lisa-train --resume {argument(folder)} goes on")
    command = python_module("trainer.cli", "--resume", operand(folder))
    os.execv(sys.executable, command)
