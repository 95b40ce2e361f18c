"""The events of a step whose decoder layers are compiled, from those of plain layers.

A forecast runs plain layers. Inductor's code takes and frees other blocks, in another order
(`profiles.compiled_layers`). So each layer's own events are removed from the trace, and the moves
of its code take their place. Tensors that layers pass to each other stay, but live from when the
code makes them until the code frees them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from profiles.compiled_layers import Moves
from profiles.host_memory import pinned_size
from profiles.sizes import MIB
from trainer.model.layers.decoder import Rope, RunLayer
from trainer.rehearse.memory_trace import WORKSPACES, MemoryTrace, rounded

Event = tuple[int, int]  # block, bytes
# What Inductor fills before each launch that it times, to empty the card's cache: a block of the
# cache's size, here an H200's (an H100 has 50 MiB).
TIMING_BYTES = 60 * MIB


@dataclass
class Visit:
    """A plain layer's forward and backward pass: the event at which each begins, and its blocks."""

    recomputed: bool
    forward: int
    born: set[int]
    input: int
    output: int
    backward: int = -1
    incoming: int = -1  # gradients
    outgoing: int = -1
    gradients: list[int] = field(default_factory=list)  # of trained tensors, made here

    def moved(self, start: int, blocks: Mapping[int, int], places: Sequence[int]) -> Visit:
        """The same with other blocks, at the places of the events since `start`."""
        return Visit(
            self.recomputed, places[self.forward - start],
            {blocks[block] for block in self.born if block in blocks},
            blocks[self.input], blocks[self.output], places[self.backward - start],
            blocks[self.incoming], blocks[self.outgoing], [blocks[b] for b in self.gradients],
        )  # fmt: skip


class LayerVisits:
    """Notes under a trace where decoder layers learn."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.trace = trace
        self.back: list[Visit] = []  # those that came back, in that order

    def mark(self, run: RunLayer, recomputed: bool) -> RunLayer:
        """`run`, noted."""

        def marked(layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
            event, first = self._now()
            output = run(layer, hidden, rope, mask)
            if torch.is_grad_enabled() and hidden.requires_grad:
                born = set(range(first, self._now()[1]))
                visit = Visit(recomputed, event, born, self._block(hidden), self._block(output))
                self._follow(visit, layer, hidden, output)
            return output

        return marked

    def repeat(self, start: int, blocks: Mapping[int, int], places: Sequence[int]) -> None:
        """What was noted of the blocks has happened again, with other blocks at other events."""
        first = [visit for visit in self.back if visit.output in blocks]
        self.back += [visit.moved(start, blocks, places) for visit in first]

    def _follow(self, visit: Visit, layer: nn.Module, hidden: Tensor, output: Tensor) -> None:
        first = 0

        def begins(gradient: Tensor) -> None:
            nonlocal first
            visit.backward, first = self._now()
            visit.incoming = self._block(gradient)

        def ends(gradient: Tensor) -> None:
            born = range(first, self._now()[1])
            visit.outgoing = self._block(gradient)
            grads = [p.grad for p in layer.parameters() if p.grad is not None]
            visit.gradients = [block for block in map(self._block, grads) if block in born]
            visit.born.update(born)
            self.back.append(visit)

        output.register_hook(begins)
        hidden.register_hook(ends)

    def _block(self, tensor: Tensor) -> int:
        block = self.trace.block_of(tensor)
        assert block is not None  # what layers pass on is on the card
        return block

    def _now(self) -> tuple[int, int]:
        """The next event, and the next block."""
        return len(self.trace.recorded), len(self.trace.labels)


def compiled_events(
    trace: MemoryTrace, back: list[Visit], moves: dict[bool, Moves]
) -> tuple[list[Event], int]:
    """The trace's events with the moves of compiled code for the layers of `back`; bytes pinned.

    `moves`: by whether a layer is recomputed.
    """
    transplant = _Transplant(trace)
    transplant.visits(back, moves)
    events = transplant.events()
    pinned = pinned_bytes(events, transplant.start, transplant.copied)
    return [event for event in events if event[1]], pinned


def pinned_bytes(events: list[Event], start: int, copied: dict[int, int]) -> int:
    """Bytes of the largest block that Inductor pins while it times kernels.

    `copied`: places among the events, and bytes. Inductor makes these copies on the host if they
    would raise the peak since `start` on the card (torch's `copy_args_to_cpu_if_needed`).
    """
    now = peak = most = 0
    for block, size in events:
        now += size
        peak = now if block == start else max(peak, now)
        if now + copied.get(block, 0) > peak:
            most = max(most, pinned_size(copied[block]))
    return most


class _Transplant:
    """Replaces the events of plain layers by the moves of compiled ones."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.trace = trace
        self.next = len(trace.labels)  # the number of the next block that plain layers do not have
        self.put: dict[int, list[Event]] = defaultdict(list)  # by the event before which it comes
        self.plain: set[int] = set()  # blocks of plain layers: they are not taken
        self.gone: set[int] = set()  # blocks that are not given where they were
        self.timed: set[tuple[str, ...]] = set()  # code that has run once
        self.made: dict[int, int] = {}  # what plain layers pass on -> the code's block for it
        self.copied: dict[int, int] = {}  # places where a copy may be made on the host -> its bytes
        backward = next(first for first, phase, _ in trace.parts if phase == "backward")
        self.start = self._mark(self.put[backward])  # where a rehearsal begins to look for a peak

    def visits(self, back: list[Visit], moves: dict[bool, Moves]) -> None:
        """Put the moves of all visits, which came back in this order."""
        held: dict[int, list[Event]] = {}
        for visit in sorted(back, key=lambda visit: visit.forward):
            held[id(visit)] = self._forward(visit, moves[visit.recomputed])
        for visit in back:
            self._backward(visit, moves[visit.recomputed], held[id(visit)])

    def events(self) -> list[Event]:
        """All events of the card."""
        found: list[Event] = []
        for place, (block, size) in enumerate(self.trace.recorded):
            found += self.put.get(place, ())
            if block not in (self.plain if size > 0 else self.gone):
                found.append((self.made.get(block, block) if size < 0 else block, size))
        return self.trace.on_card(found)

    def _mark(self, put: list[Event]) -> int:
        """A place among the events: one of no bytes."""
        self.next += 1
        put.append((self.next, 0))
        return self.next

    def _forward(self, visit: Visit, code: Moves) -> list[Event]:
        """Put the moves forward; the blocks that the code has taken so far."""
        put, own = self.put[visit.forward], list[Event]()
        plain = {block for block in visit.born if self.trace.labels[block] != WORKSPACES}
        self.plain |= plain
        self.gone |= plain - {visit.output, visit.outgoing, *visit.gradients}
        self._move(code.forward, code, visit, own, put)
        self.made[visit.output] = own[code.output][0]
        if "i" not in code.backward:
            self._give(visit.input, put)
        return own

    def _backward(self, visit: Visit, code: Moves, own: list[Event]) -> None:
        put, sizes = self.put[visit.backward], self.trace.sizes
        self._move(code.backward, code, visit, own, put)
        # autograd's engine holds the incoming gradient until the layer's function has returned.
        self._give(visit.incoming, put)
        self.gone.discard(visit.outgoing)  # plain layers may add to the one that came in
        self.made[visit.outgoing] = own[code.gradient][0]
        first = list(visit.gradients)
        for block, size in (own[number] for number in code.trained):
            alike = next((plain for plain in first if sizes[plain] == size), None)
            if alike is None:
                put.append((block, -size))  # it was added to an earlier micro-batch's
            else:
                first.remove(alike)
                self.made[alike] = block
        self.plain.difference_update(first)

    def _move(
        self, words: tuple[str, ...], code: Moves, visit: Visit, own: list[Event], put: list[Event]
    ) -> None:
        first = words not in self.timed
        self.timed.add(words)
        for word in words:
            if word == "i":
                self._give(visit.input, put)
            elif word[0] == "-":
                block, size = own[int(word[1:])]
                put.append((block, -size))
            elif word[0] == "+":
                own.append(self._take(code.sizes[int(word[1:])], put))
            elif first:
                copied = [code.sizes[int(number)] for number in word[1:].split(",") if number]
                self._time(copied, words is code.backward, put)

    def _time(self, copied: list[int], back: bool, put: list[Event]) -> None:
        """Time a kernel, on copies of the tensors that it changes."""
        for size in copied if back else ():
            self.copied[self._mark(put)] = size
        took = [self._take(size, put) for size in (TIMING_BYTES, *([] if back else copied))]
        put += [(block, -size) for block, size in took]

    def _take(self, size: int, put: list[Event]) -> Event:
        """Take a block that plain layers do not have."""
        self.next += 1
        put.append((self.next, rounded(size)))
        return put[-1]

    def _give(self, block: int, put: list[Event]) -> None:
        """Free a block here that the trace frees elsewhere."""
        put.append((self.made.pop(block, block), -self.trace.sizes[block]))
        self.gone.add(block)
