"""What a run depends on: card or processor, free and used memory, library versions."""

from __future__ import annotations

from importlib.metadata import version

import torch

from profiles.environment import own_card
from profiles.plan import Plan

NO_CARD = (
    "the plan trains on a CUDA device, and torch sees none\n"
    "    hint: lisa-advise doctor says why; on a CPU trains "
    "lisa-train --auto --model tiny --data-dir DIR"
)


def room(plan: Plan) -> tuple[int, int] | None:
    """Bytes on the card that this process's pool may use at most, and bytes used outside it."""
    if plan.device == "cpu" or not torch.cuda.is_available():
        return None
    torch.cuda.init()
    card = own_card()
    free, total = torch.cuda.mem_get_info(
        card
    )  # creates the CUDA context, which counts from now on
    pool = torch.cuda.memory_reserved(card)
    cap = int(torch.cuda.get_per_process_memory_fraction(card) * total)
    return min(pool + free, cap), total - free - pool


def free_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes that this process can still allocate: on the card (under its cap), and on the host."""
    import psutil

    there = room(plan)
    if there is None:
        raise ValueError(NO_CARD)
    return there[0] - torch.cuda.memory_reserved(), psutil.virtual_memory().available


def hardware(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def peaks() -> dict[str, int]:
    """Peak bytes on the card so far: of tensors, and of the allocator's pool."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def memory_bytes(device: torch.device) -> int:
    """Peak bytes of this process: of the pool on a card, or of host memory without a card."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


def versions() -> dict[str, str]:
    """Versions of the libraries that can change a result."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "lisa-preflight")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except ImportError:
            found[name] = "unknown"
    return found
