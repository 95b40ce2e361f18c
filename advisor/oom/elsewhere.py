"""Explains shortages of memory other than the card's: what ran out, and what helps."""

from __future__ import annotations

import re

from advisor.oom.causes import size
from advisor.oom.known import Memory
from advisor.oom.wordings import Message
from profiles.text import argument

_HOST_HELPS = (
    "close other programs; in a container, WSL or a job, raise its memory limit",
    "fewer workers, and fewer host_layers: both are kept in host memory",
    "--set host_embeddings=false keeps embedding and head on the card",
    "lisa-advise forecast plan.json gives the host memory of a plan beforehand",
)
_TOLD: dict[Memory, tuple[str, tuple[str, ...]]] = {
    "host": ("host memory (RAM) ran out, not the card's", _HOST_HELPS),
    "pinned": (
        "pinned host memory (RAM) ran out, not the card's: CUDA calls that out of memory, too",
        ("the data loader's pin_memory=False, or fewer workers (elsewhere); Windows and WSL pin "
         "at most half of the RAM", *_HOST_HELPS),
    ),
    "killed": (
        "the process was killed from outside, most often because host memory (RAM) ran out",
        ("dmesg -T | grep -i 'killed process' says whether it was; so does the record of a "
         "container or a scheduler", *_HOST_HELPS),
    ),
    "shared": (
        "shared memory (/dev/shm), through which processes pass data, ran out, not the card's",
        ("--set workers=0 needs none (elsewhere: num_workers=0)",
         "in a container raise it: docker run --shm-size=8g, or --ipc=host"),
    ),
    "on-chip": (
        "not the card's memory: a kernel asks for more shared memory, registers or threads than a "
        "processor of this card has",
        ("--set compile=false leaves Triton's kernels out",
         "a smaller batch does not help; another version of the kernel's library may"),
    ),
    "size": (
        "more than 1 EB was asked for: a size that was computed wrongly, not a full card",
        ("look at the first error in the log: often a process was interrupted while it sent data, "
         "or a file is damaged",),
    ),
    "unified": (
        "an Apple GPU's share of the memory ran out; only NVIDIA cards are planned for here, "
        "--vram SIZE gives the memory side",
        ("close other programs: the GPU shares the machine's memory",),
    ),
    "run": (
        "lisa-train ran out of the card's memory; it continues with a smaller plan if there is one",
        ("lisa-train --resume RUN continues a run that has ended",),
    ),
}  # fmt: skip
_REPORT = re.compile(r"(?:details in|memory, see) (.+?)(?:;|$)")


def in_words(message: Message) -> tuple[str, tuple[str, ...]]:
    """What ran out, with the message's figures, and what helps."""
    summary, helps = _TOLD[message.memory]
    if message.memory == "killed" and message.sure:
        summary = "the process was killed because host memory (RAM) ran out"
    elif message.memory != "killed" and not message.sure:
        summary = f"most likely {summary}"
    if message.memory == "host" and message.requested_bytes:
        summary += f"; {size(message.requested_bytes)} were asked for at once"
    if message.memory == "killed" and message.process_bytes:
        summary += f"; the process had {size(message.process_bytes)}"
    if message.memory == "unified" and message.allowed_bytes:
        summary += f"; PyTorch may take {size(message.allowed_bytes)} there"
    report = _REPORT.search(message.text) if message.memory == "run" else None
    if report is not None:
        place = f"{report[1].strip()}/shortage.json"
        helps = (f"lisa-advise explain-oom {argument(place)} explains it", *helps)
    return summary, helps
