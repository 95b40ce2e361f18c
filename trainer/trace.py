"""Every allocation of a step, watched from outside: which tensors live when, and how large.

A dispatch mode sees each operator's results. A tensor's bytes count from the operator that made
its storage until that storage is gone, rounded up to 512 bytes as CUDA's allocator rounds
(c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize). It works on fake tensors, which have shapes and
no memory, so a 7B step can be watched on any machine, in seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.model import frozen  # noqa: F401  registers the operators named below

ROUNDING = 512  # bytes


def rounded(size: int) -> int:
    """`size` in bytes as the allocator hands it out."""
    return -(-size // ROUNDING) * ROUNDING


class MemoryTrace(TorchDispatchMode):
    """Records allocations and releases as `events`: (block, bytes), −bytes for a release."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self.labels: list[str] = []  # of each block: the component, or the phase of its birth
        self.sizes: list[int] = []  # of each block, in bytes
        self.phases: list[tuple[int, str]] = []  # (first event, name)
        self._blocks: dict[int, int] = {}  # storage -> block
        self._elsewhere: set[int] = set()  # storages that outlive the trace

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors that exist already, and name them. Those counted before get the name."""
        for tensor in tensors:
            self._see(tensor, label)
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None:
                self.labels[block] = label

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Never count these, nor views of them: they are in host memory."""
        self._elsewhere |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def begin(self, phase: str) -> None:
        """What follows belongs to `phase`."""
        self.phases.append((len(self.events), phase))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        inner = HIDDEN.get(func.overloadpacket)
        inside = [self._take(size, "inside an operator") for size in inner(*args)] if inner else []
        result = func(*args, **(kwargs or {}))
        label = self.phases[-1][1] if self.phases else ""
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value, label)
        for block in inside:
            self._release(block)
        return result

    def _see(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._blocks and key not in self._elsewhere and storage.nbytes():
            self._blocks[key] = self._take(storage.nbytes(), label)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._release(self._blocks.pop(key))

    def _take(self, size: int, label: str) -> int:
        block = len(self.labels)
        self.labels.append(label)
        self.sizes.append(rounded(size))
        self.events.append((block, self.sizes[block]))
        return block

    def _release(self, block: int) -> None:
        self.events.append((block, -self.sizes[block]))

    def peaks(self) -> dict[str, int]:
        """The most bytes live at once in each phase."""
        found: dict[str, int] = {}
        ends = [*(first for first, _ in self.phases[1:]), len(self.events)]
        now = sum(size for _, size in self.events[: self.phases[0][0]])
        for (first, name), end in zip(self.phases, ends, strict=True):
            top = now
            for _, size in self.events[first:end]:
                now += size
                top = max(top, now)
            found[name] = max(found.get(name, 0), top)
        return found

    def live_at_peak(self) -> dict[str, int]:
        """Bytes by label at the moment of the largest peak."""
        now = peak = place = 0
        for index, (_, size) in enumerate(self.events):
            now += size
            if now > peak:
                peak, place = now, index
        live: dict[int, int] = {}
        for block, size in self.events[: place + 1]:
            if size > 0:
                live[block] = size
            else:
                del live[block]
        found: dict[str, int] = {}
        for block, size in live.items():
            found[self.labels[block]] = found.get(self.labels[block], 0) + size
        return found


def _nf4_inside(x: Tensor, packed: Tensor, scales: Tensor, *rest: Any) -> list[int]:
    """What `nf4_product` holds beside its result: two forms of the scales, the widened weight."""
    return [scales.numel() * 4, scales.numel() * 4, packed.numel() * 2 * x.element_size()]


def _int8_inside(x: Tensor, codes: Tensor, scales: Tensor, back: bool) -> list[int]:
    """What `int8_product` holds beside its result: the scaled input going back, the weight."""
    scaled = [x.numel() * x.element_size()] if back else []
    return [*scaled, codes.numel() * x.element_size()]


# Operators that are one call from outside and hold memory of their own while they run.
HIDDEN: dict[Any, Callable[..., list[int]]] = {
    torch.ops.lisa_preflight.nf4_product: _nf4_inside,
    torch.ops.lisa_preflight.int8_product: _int8_inside,
}
