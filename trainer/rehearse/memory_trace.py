"""Every allocation of a step, recorded from outside: which tensors live when, and how large.

A dispatch mode sees each operator's results. A tensor's bytes count from the operator that made
its storage until that storage is freed, rounded up to 512 bytes as CUDA's allocator rounds
(c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize). This works on fake tensors, which have shapes
but no memory, so any machine can watch a 7B step in seconds.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.pool_events import EMPTY, on_stream
from profiles.sizes import MIB
from trainer.rehearse.card_kernels import (
    GONE_ON,
    HIDDEN,
    NOTHING_INSIDE,
    PRODUCTS,
    card_results,
    in_order_made,
    works_in_place,
)
from trainer.rehearse.shape_kernels import NOTHING, known_result

ROUNDING = 512  # bytes


def rounded(size: int) -> int:
    """`size` in bytes as the allocator hands it out."""
    return -(-size // ROUNDING) * ROUNDING


# Every measured row takes 1.00 MiB more than all that is traced (benchmarks/forecast_rows.jsonl):
# most likely cuBLASLt's workspace, whose default that is.
BESIDE = MIB


INSIDE = "inside an operator"  # labels, beside phases and components
WORKSPACES = "cuBLAS workspaces"


class Unforeseen(RuntimeError):
    """An operator whose memory cannot be seen from outside, so that there is no forecast."""


Spans = list[tuple[int, str]]  # (the first of a span, its name)


class MemoryTrace(TorchDispatchMode):
    """Records allocations and releases as (block, bytes), −bytes for a release.

    `workspace` is what each of cuBLAS's two handles, the main thread's and autograd's, takes at its
    first product, in bytes. `tell` is called for every phase that begins.
    """

    def __init__(
        self, workspace: int = 0, tell: Callable[[str], None] = lambda phase: None
    ) -> None:
        super().__init__()
        self.tell = tell
        self.recorded: list[tuple[int, int]] = []
        self.labels: list[str] = []  # of each block: the component, or the phase of its birth
        self.sizes: list[int] = []  # of each block, in bytes
        self.phase = ""
        self.parts: list[tuple[int, str, str]] = []  # (first event, phase, part); a phase's first
        # part has its name
        self.workspace = workspace
        self.closed = False
        self._handles: set[bool] = set()
        self.live: set[int] = set()  # blocks
        self._blocks: dict[int, int] = {}  # storage -> block
        self._addend: int | None = None  # the block into which the next one may be added
        self._last: tuple[Any, int | None] = None, None  # what may be gone on with, and its block
        self._sum: tuple[int, int, int] | None = None  # a sum taken just now: it, addend, place
        self._same: dict[int, int] = {}  # a sum's block -> the block in whose place it is
        self._elsewhere: set[int] = set()  # storages that are not on the card
        self._left_out: set[int] = set()  # their blocks, if seen before that was known
        self._streams: dict[int, int] = {}  # of blocks that are not on the first
        self._emptied: list[int] = []  # events before which the pool is emptied
        self.result_streams: dict[Any, int] = {}  # by the operator that makes them

    @property
    def events(self) -> list[tuple[int, int]]:
        """What was recorded of the card, with streams (`profiles.pool_events`)."""
        found = list(self.recorded)
        for place in reversed(self._emptied):
            found.insert(place, EMPTY)
        return self.on_card(found)

    def on_card(self, events: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """`events` without those of blocks that are not on the card."""
        return [
            (on_stream(block, self._streams.get(block, 0)), size)
            for block, size in events
            if block not in self._left_out
        ]

    @contextmanager
    def apart(self, stream: int) -> Iterator[None]:
        """Inside the block, allocations belong to that stream. A CUDA graph has a stream, too."""
        first = len(self.labels)
        yield
        self._put_on(stream, first)

    def _put_on(self, stream: int, first: int) -> None:
        """The blocks since `first` belong to that stream."""
        self._streams.update(dict.fromkeys(range(first, len(self.labels)), stream))

    def empty(self) -> None:
        """Give unused memory back to the driver, as `torch.cuda.empty_cache` does."""
        self._emptied.append(len(self.recorded))

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors that exist already, and name them. Those counted before get the name."""
        for tensor in tensors:
            self._see(tensor, label)
            block = self.block_of(tensor)
            if block is not None:
                self.labels[block] = label

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Never count these, nor views of them: they are not on the card."""
        for tensor in tensors:
            block = self.block_of(tensor)
            if block is not None:
                self._left_out.add(block)
            self._elsewhere.add(tensor.untyped_storage()._cdata)

    def begin(self, phase: str) -> None:
        """Count what follows in `phase`."""
        self.phase = phase
        self.divide(phase)
        self.tell(phase)

    def divide(self, part: str) -> None:
        """Count what follows in a part of the current phase."""
        self.parts.append((len(self.recorded), self.phase, part))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is DEVICE:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        packet = func.overloadpacket
        if func.namespace not in SEEN_THROUGH:
            raise Unforeseen(f"operator {func} is a kernel whose own memory is not known")
        hidden = HIDDEN.get(packet)
        inside = hidden(*args) if hidden else NOTHING_INSIDE
        blocks = [self.take(size, INSIDE) for size in inside.before]
        held = [self.take(size, INSIDE) for size in inside.held]
        self._give_all(blocks)
        result = card_results(func, args) or known_result(func, args, kwargs or {})
        if result is None:
            result = func(*args, **(kwargs or {}))
        elif result is NOTHING:
            return None
        label = self.phase
        self._expect_in_place(packet, args)
        first = len(self.labels)
        for value in in_order_made(packet, args, tree_leaves(result)):
            if isinstance(value, Tensor):
                self._see(value, label)
        if stream := self.result_streams.get(packet):
            self._put_on(stream, first)
        if self.workspace and packet in PRODUCTS:
            self._take_workspace()
        held += [self.take(size, INSIDE) for size in inside.after]
        self._give_all(held)
        if packet in GONE_ON:
            self._last = packet, self.block_of(result)
        return result

    def _give_all(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.give(block)

    def _expect_in_place(self, packet: Any, args: tuple[Any, ...]) -> None:
        """Note a result that will take the first tensor's place if that is freed at once.

        On a card two kinds of operators work in place that make a third tensor when they run on
        fake ones. autograd adds gradients up into the first if nothing else holds it, as a view's
        base would (torch's InputBuffer; index_backward adds into its zeros): these are sums outside
        recorded arithmetic. And torch's own arithmetic continues in place: a linear adds its bias
        to the product.
        """
        if not (args and isinstance(args[0], Tensor)):
            return
        first, (before, made) = self.block_of(args[0]), self._last
        here = made is not None and first == self._same.get(made, made)
        backward = self.phase == "backward" and not torch.is_grad_enabled()
        gradients = packet in ADDED_UP and backward and not args[0]._is_view()
        if gradients or (here and works_in_place(before, packet, args)):
            self._addend = first

    def _take_workspace(self) -> None:
        backward = self.phase == "backward"
        if not self._handles:
            self.take(BESIDE, WORKSPACES)
        if backward not in self._handles:
            self._handles.add(backward)
            self.take(self.workspace, WORKSPACES)

    def block_of(self, tensor: Tensor) -> int | None:
        """The block of the tensor's storage, if it is counted, or was until it was freed early."""
        block = self._blocks.get(tensor.untyped_storage()._cdata)
        if block is None:
            return None
        block = block if block >= 0 else -1 - block
        return self._same.get(block, block)

    def _see(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._blocks or key in self._elsewhere or tensor.device.type == "meta":
            return  # counted, not on the card, or a place that waits for its weight
        if size := storage.nbytes():
            self._blocks[key] = self.take(size, label)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        block = self._blocks.pop(key)
        if block >= 0:
            self.give(block)
        self._elsewhere.discard(key)

    def take(self, size: int, label: str) -> int:
        """Count `size` bytes; returns the block's number."""
        block = len(self.labels)
        self.labels.append(label)
        self.sizes.append(rounded(size))
        self.recorded.append((block, self.sizes[block]))
        self.live.add(block)
        addend, self._addend, self._sum = self._addend, None, None
        if addend is not None and self.sizes[addend] == self.sizes[block]:
            self._sum = block, addend, len(self.recorded) - 1
        return block

    def close(self) -> None:
        """The run is over: what is freed from now on is no event of it."""
        self.closed = True

    def give(self, block: int) -> None:
        """The block has been freed."""
        if self.closed:
            return
        block = self._same.pop(block, block)
        if self._sum is not None and block in self._sum[:2]:
            total, addend, place = self._sum
            self._sum = None
            if block == addend:
                self._same[total] = addend
                del self.recorded[place]
                self.live.remove(total)
                return
        self.recorded.append((block, -self.sizes[block]))
        self.live.remove(block)

    def give_early(self, tensor: Tensor) -> None:
        """Count a tensor as freed, even if something still holds it."""
        key = tensor.untyped_storage()._cdata
        block = self._blocks.get(key, -1)
        if block >= 0:
            known = self._same.get(block, block)
            self.give(block)
            self._blocks[key] = -1 - known  # so that its end is no second one

    def peaks(self, parts: bool = False) -> dict[str, int]:
        """The most bytes live at once in each phase, or in each part of one."""
        found: dict[str, int] = {}
        spans = _parts(self.parts) if parts else _phases(self.parts)
        starts = [*spans[1:], (len(self.recorded), "")]
        now = sum(size for _, size in self._counted(0, spans[0][0]))
        for (first, name), (end, _) in zip(spans, starts, strict=True):
            top = now
            for _, size in self._counted(first, end):
                now += size
                top = max(top, now)
            found[name] = max(found.get(name, 0), top)
        return found

    def _counted(self, first: int, end: int) -> Iterable[tuple[int, int]]:
        return (event for event in self.recorded[first:end] if event[0] not in self._left_out)

    def live_at_peak(self) -> dict[str, int]:
        """Bytes by label at the moment of the largest peak."""
        events = [*self._counted(0, len(self.recorded))]
        now = peak = place = 0
        for index, (_, size) in enumerate(events):
            now += size
            if now > peak:
                peak, place = now, index
        live: dict[int, int] = {}
        for block, size in events[: place + 1]:
            if size > 0:
                live[block] = size
            else:
                del live[block]
        found: dict[str, int] = {}
        for block, size in live.items():
            found[self.labels[block]] = found.get(self.labels[block], 0) + size
        return found

    def last_step(self, points: int) -> tuple[dict[str, list[int]], Spans, Spans]:
        """Bytes by label at about `points` moments of the last step, the highest of each stretch.

        Also the step's phases, and the parts of phases, each as (first moment, name). A step ends
        with the optimizer's phase.
        """
        ends = [n for n, (_, _, part) in enumerate(self.parts) if part == "optimizer"]
        last = self.parts[(ends[-2] + 1 if len(ends) > 1 else 0) :]
        phases, parts = _phases(last), _parts(last)
        begin = phases[0][0]
        edges = {first for first, _ in parts}
        width = max(1, -(-(len(self.recorded) - begin) // points))
        now: dict[str, int] = {}
        moments: list[dict[str, int]] = []
        firsts: list[int] = []  # event of each moment; none lies in two phases
        most = -1
        for index, (block, size) in enumerate(self.recorded):
            if block not in self._left_out:
                label = self.labels[block]
                now[label] = now.get(label, 0) + size
            if index < begin:
                continue
            if index in edges or index - firsts[-1] >= width:
                firsts.append(index)
                moments.append({})
                most = -1
            if (total := sum(now.values())) > most:
                moments[-1], most = dict(now), total
        labels = sorted({label for moment in moments for label in moment})
        by_label = {n: [moment.get(n, 0) for moment in moments] for n in labels}

        def shown(spans: Spans) -> Spans:
            return [(bisect_left(firsts, first), name) for first, name in spans]

        return by_label, shown(phases), shown(parts)


def _phases(parts: Iterable[tuple[int, str, str]]) -> Spans:
    return [(first, phase) for first, phase, part in parts if phase == part]


def _parts(parts: Iterable[tuple[int, str, str]]) -> Spans:
    return [(first, part) for first, _, part in parts]


# Called for fake tensors more often than everything else together, and it takes no memory.
DEVICE = torch.ops.prim.device.default
# Namespaces of operators that take no memory beside their results, or are listed above.
SEEN_THROUGH = {"aten", "prim", "prims", "profiler", "bitsandbytes", "lisa_preflight"}
# Operators that autograd uses to add a gradient to an existing one, or to zeros.
ADDED_UP = {torch.ops.aten.add, torch.ops.aten.index_put}
