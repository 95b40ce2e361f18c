"""The events of a step whose decoder layers are compiled, from those of plain layers.

A forecast runs plain layers. Inductor's code takes and gives other blocks, in another order
(`profiles.compiled_layers`). So each layer's own events are taken out of the trace and the moves of
its code put in their place; what layers pass on stays, from when the code makes it until the code
lets it go.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from profiles.compiled_layers import Moves
from trainer.model.layers.decoder import Rope, RunLayer
from trainer.rehearse.memory_trace import WORKSPACES, MemoryTrace, rounded

Event = tuple[int, int]  # block, bytes


@dataclass
class Visit:
    """A plain layer's way forward and back: the event at which each begins, and its blocks."""

    recomputed: bool
    forward: int
    born: set[int]
    input: int
    output: int
    backward: int = -1
    incoming: int = -1  # gradients
    outgoing: int = -1
    gradients: list[int] = field(default_factory=list)  # of trained tensors, made here

    @property
    def passed_on(self) -> set[int]:
        """Blocks that outlive the layer."""
        return {self.output, self.outgoing, *self.gradients}


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

    def _follow(self, visit: Visit, layer: nn.Module, hidden: Tensor, output: Tensor) -> None:
        first = 0

        def begins(gradient: Tensor) -> None:
            nonlocal first
            visit.backward, first = self._now()
            visit.incoming = self._block(gradient)

        def ends(gradient: Tensor) -> None:
            born = range(first, self._now()[1])
            visit.outgoing = self._block(gradient)
            grads = [self.trace.block_of(p.grad) for p in layer.parameters() if p.grad is not None]
            visit.gradients = [block for block in grads if block in born]
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


def compiled_events(trace: MemoryTrace, back: list[Visit], moves: dict[bool, Moves]) -> list[Event]:
    """The trace's events where the layers of `back` do what the code does.

    `moves` are those of recomputed layers (True) and of others.
    """
    transplant = _Transplant(trace)
    transplant.visits(back, moves)
    return transplant.events()


class _Transplant:
    """Puts the moves of compiled layers in the place of plain ones' events."""

    def __init__(self, trace: MemoryTrace) -> None:
        self.trace = trace
        self.next = len(trace.labels)  # the number of the next block that plain layers do not have
        self.put: dict[int, list[Event]] = defaultdict(list)  # by the event before which it comes
        self.not_taken: set[int] = set()  # blocks that are not taken, or given, where they were
        self.not_given: set[int] = set()
        self.gradients: dict[int, int] = {}  # of a layer's input: plain layer's block -> the code's

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
            if size < 0 and block in self.gradients:
                found.append((self.gradients[block], size))
            elif block not in (self.not_taken if size > 0 else self.not_given):
                found.append((block, size))
        return self.trace.on_card(found)

    def _forward(self, visit: Visit, code: Moves) -> list[Event]:
        """Put the moves forward; the blocks that the code has taken so far."""
        own: list[Event] = []
        put, labels = self.put[visit.forward], self.trace.labels
        self.not_taken |= {block for block in visit.born if labels[block] != WORKSPACES}
        self.not_given |= {
            block for block in visit.born - visit.passed_on if block in self.not_taken
        }
        for word in code.forward:
            if word == "o":
                self._take(visit.output, put)
            elif word != "i":
                self._move(word, code, own, put)
        if "i" not in code.backward:
            self._give(visit.input, put)
        return own

    def _backward(self, visit: Visit, code: Moves, own: list[Event]) -> None:
        put, added = self.put[visit.backward], []
        learnt = {block: self.trace.sizes[block] for block in visit.gradients}
        for word in code.backward:
            if word == "i":
                self._give(visit.input, put)
            elif word == "d":
                outgoing = self._fresh(self.trace.sizes[visit.outgoing], put)
            elif word[0] == "w":
                size = rounded(code.sizes[int(word[1:])])
                block = next((b for b, s in learnt.items() if s == size), None)
                if block is None:  # it is added to an earlier micro-batch's, and goes
                    added.append((self._fresh(size, put), -size))
                else:
                    self._take(block, put)
                    del learnt[block]
                own.append((-1, 0))
            else:
                self._move(word, code, own, put)
        # The engine holds the gradient that came in until the layer's function has returned.
        self._give(self.gradients.pop(visit.incoming, visit.incoming), put, visit.incoming)
        put += added
        self.gradients[visit.outgoing] = outgoing

    def _move(self, word: str, code: Moves, own: list[Event], put: list[Event]) -> None:
        """Take or give one of the code's own blocks."""
        if word[0] == "-":
            block, size = own[int(word[1:])]
            put.append((block, -size))
        else:
            size = rounded(code.sizes[int(word[1:])])
            own.append((self._fresh(size, put), size))

    def _fresh(self, size: int, put: list[Event]) -> int:
        """Take a block that plain layers do not have."""
        self.next += 1
        put.append((self.next, size))
        return self.next

    def _take(self, block: int, put: list[Event]) -> None:
        """Take a block of the trace here."""
        put.append((block, self.trace.sizes[block]))

    def _give(self, block: int, put: list[Event], known_as: int | None = None) -> None:
        """Give a block here that the trace, maybe by another number, gives elsewhere."""
        known_as = block if known_as is None else known_as
        put.append((block, -self.trace.sizes[known_as]))
        self.not_given.add(known_as)
