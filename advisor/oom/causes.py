"""What a message's figures say: what filled the card, why that was too much, what would help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from advisor.oom.wordings import Message, Process
from profiles.records import Frozen
from profiles.sizes import GIB, MIB, gib, mib

OTHERS_BYTES = GIB // 2  # less beside the process may be the display
CONTEXT_BYTES = GIB  # of CUDA's context and libraries; on most cards it is half of that
# Shares of the card that are in the pool and not in use: much in any case, and enough to matter.
SCRAPS_SHARE, SCRAPS_LEAST = 0.1, 0.03
REFUSED_SHARE = 0.05  # of the card; a driver does not give out the last of it
SEGMENTS = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


class Filled(Frozen):
    """One part of the card's memory at the error."""

    part: str
    bytes: int


@dataclass(frozen=True)
class Use:
    """The card at the error, in bytes; None for what the message does not say."""

    total: int
    free: int | None
    tensors: int
    scraps: int  # in the pool, not in use
    own: int | None  # this process, context included
    listed: tuple[Process, ...]  # other processes that the driver lists
    whole_pool: bool = True  # False: the pool may have more that is not in use

    @property
    def pool(self) -> int:
        return self.tensors + self.scraps

    @property
    def outside(self) -> int:
        """Bytes that are neither free nor this process's, as far as that is known."""
        if self.free is None:
            return 0
        return max(0, self.total - self.free - (self.pool if self.own is None else self.own))

    @property
    def others(self) -> int:
        """Bytes that other processes hold at least."""
        listed = sum(one.bytes for one in self.listed)
        if self.own is not None:
            return max(self.outside, listed)
        return max(self.outside - CONTEXT_BYTES, listed) if self.whole_pool else listed

    @property
    def spilled(self) -> bool:
        """Whether Windows' driver has moved a part to host memory."""
        return self.tensors > self.total

    def parts(self) -> list[Filled]:
        """What filled the card, by the names of the forecast."""
        found = [("tensors", self.tensors), ("in the pool, not in use", self.scraps)]
        if self.own is not None:
            found.append(("context and libraries", max(0, self.own - self.pool)))
            found.append(("other processes, display", self.outside))
        elif self.free is not None:
            found.append(("context, libraries, other processes", self.outside))
        if self.free is not None:
            found.append(("free", self.free))
        return [Filled(part=name, bytes=held) for name, held in found]


def use_of(message: Message) -> Use | None:
    """The card's use, if the message has the figures."""
    total, tensors = message.total_bytes, message.allocated_bytes
    if not total or tensors is None:
        return None
    scraps, own, others = message.unallocated_bytes or 0, message.process_bytes, message.others
    if own is not None and own < 0.99 * (tensors + scraps):
        own = None  # a MIG instance, a container and WSL report 0 or nonsense
    if own is None:
        # In a container the driver's list has the host's numbers, and this process is one of them.
        pool = tensors + scraps
        near = [one for one in others if -0.01 * pool <= one.bytes - pool <= 2 * CONTEXT_BYTES]
        if near:
            itself = min(near, key=lambda one: one.bytes)
            own, others = itself.bytes, tuple(one for one in others if one is not itself)
    whole = message.unallocated_bytes is not None
    return Use(total, message.free_bytes, tensors, scraps, own, others, whole)


class Cause(Frozen):
    """Why the request failed, in a sentence, and what helps against it."""

    name: Literal["other processes", "fragmentation", "limit", "request", "refused", "tensors"]
    text: str
    helps: tuple[str, ...] = Field((), exclude=True)


def causes(message: Message, use: Use, windows: bool) -> list[Cause]:
    """Why the request failed: other processes first, tensors last."""
    asked = message.requested_bytes or 0
    found = [_others(use, asked), _scraps(use, asked, windows), _limit(message, use)]
    found += [_larger(use, asked), _refused(message, use, asked, windows)]
    causes = [one for one in found if one is not None]
    if use.tensors >= (use.total - use.others) / 2 or not causes:
        causes.append(_tensors(use))
    return causes


def size(number: int) -> str:
    """Bytes as the messages themselves show them."""
    return gib(number) if number >= GIB else mib(number) if number >= MIB else f"{number} bytes"


def _enough(freed: int, use: Use, asked: int, so: str) -> str:
    """Words on whether the request would have fitted with `freed` bytes more."""
    missing = asked - freed - (use.free or 0)
    if missing > 0:
        return f"; even {so} {size(missing)} would still have been missing"
    return f"; {so} the request would have fitted" if asked > (use.free or 0) else ""


def _others(use: Use, asked: int) -> Cause | None:
    least = OTHERS_BYTES if use.own is not None else max(OTHERS_BYTES, use.total // 20)
    if use.others < least:
        return None
    pids = ", ".join(f"{one.pid} with {size(one.bytes)}" for one in use.listed[:3])
    who = f" ({pids})" if pids else ""
    sure = "" if use.own is not None else " most likely"
    them = "other processes" if use.listed or use.own is None else "other processes or the display"
    text = f"{them}{sure} hold {size(use.others)}{who}"
    text += _enough(use.others, use, asked, "without them")
    left = vram_option(use.total - use.others)
    return Cause(name="other processes", text=text, helps=(
        "nvidia-smi lists the processes on the card; end what is not needed, also notebooks and "
        "earlier runs that still hold memory",
        "lisa-train --wait-minutes N waits until others have released it",
        f"beside them: lisa-advise {left}",
    ))  # fmt: skip


def _scraps(use: Use, asked: int, windows: bool) -> Cause | None:
    share = use.scraps / use.total
    free = use.free or 0
    decides = free < asked <= free + use.scraps and share >= SCRAPS_LEAST
    large = share >= SCRAPS_SHARE or decides
    if use.spilled or not large:
        return None
    text = (
        f"fragmentation: {size(use.scraps)} are reserved by PyTorch but not in use, in pieces too "
        f"small for the request{_enough(use.scraps, use, asked, 'in one piece')}"
    )
    fix = f"start it with {SEGMENTS} (PyTorch 2.1 or later); lisa-train's plans do (allocator)"
    if windows:
        fix = "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128; Windows has no expandable segments"
    return Cause(name="fragmentation", text=text, helps=(fix,))


def _limit(message: Message, use: Use) -> Cause | None:
    limit = message.allowed_bytes
    if limit is None or limit >= use.total:
        return None
    text = f"this process may take {size(limit)} of the card's {size(use.total)}: its own limit"
    fix = "raise what torch.cuda.set_per_process_memory_fraction sets"
    return Cause(name="limit", text=text, helps=(fix,))


def _larger(use: Use, asked: int) -> Cause | None:
    if asked < use.total:
        return None
    text = f"one tensor of {size(asked)} was asked for: more than the whole card"
    return Cause(name="request", text=text, helps=(
        "smaller pictures, shorter texts or a smaller batch; attention that does not keep all its "
        "scores (sdpa, flash attention)",
    ))  # fmt: skip


def _refused(message: Message, use: Use, asked: int, windows: bool) -> Cause | None:
    free = use.free or 0
    room = 0 < asked <= free and free >= REFUSED_SHARE * use.total
    if not room or message.allowed_bytes is not None:
        return None
    text = (
        f"{size(free)} were free when the error was written, more than was asked for: the "
        "driver refused although there was room"
    )
    fix = (
        "look for a limit of the virtual GPU or the container, and for processes that come and go; "
        "under WSL enlarge Windows' paging file"
    )
    if windows:
        fix = "enlarge Windows' paging file: the driver backs all memory of the card with it"
    return Cause(name="refused", text=text, helps=(fix,))


def _tensors(use: Use) -> Cause:
    text = f"the tensors of this process take {size(use.tensors)}"
    if use.spilled:
        text += (
            ", more than the card has: the driver moved a part to host memory, where training is "
            "many times slower"
        )
    else:
        text += f", {use.tensors / use.total:.0%} of the card"
    return Cause(name="tensors", text=text)


def vram_option(total: int) -> str:
    """The option that asks for advice about a card of this size."""
    return f"--vram {round(max(total, MIB) / GIB, 2):g}GiB"
