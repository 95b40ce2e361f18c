"""Among identical decoder layers only a few are traced; the others repeat what was recorded.

Layers are of one kind if they agree in: checkpointed or not, learning or evaluating, in the first
micro-batch or a later one. The first layer of a kind always runs, since its input may need no
gradient. The second runs, and what it allocates and frees is the forward pattern for those after
it. The last runs and must do the same; it comes first in the backward pass and is the pattern
there. The layers between only play the patterns: their outputs, gradients and places in the
autograd graph are real (fake) tensors. So a step of 32 layers takes the time of a few and leaves
the same trace; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.model.layers.decoder import Rope, RunLayer
from trainer.rehearse.memory_trace import MemoryTrace


class NotAlike(RuntimeError):
    """Two layers of one kind that use memory differently: one cannot replace the other."""


# What a layer does: take and free blocks of its own (numbered as they are taken), make tensors that
# others see (0 the output or its input's gradient, n the gradient of its n-th trained tensor), or
# let go of what came in (0 the gradient, 1 the layer's input).
Move = tuple[Literal["take", "give", "make", "let go"], int]


@dataclass
class Pattern:
    """What the layers of one kind do with memory."""

    forward: list[Move] | None = None
    backward: list[Move] | None = None
    sizes: list[int] = field(default_factory=list)  # of own blocks, in bytes
    labels: list[str] = field(default_factory=list)
    keeps_input: bool | None = None
    input: int | None = None  # the block that went into the recorded layer


class Repeater:
    """Runs a model's decoder layers under a trace, or repeats what was recorded for their kind."""

    def __init__(self, trace: MemoryTrace, layers: nn.ModuleList, kinds: list[str]) -> None:
        """`kinds`: of each layer, a name shared by those that run alike."""
        self.trace = trace
        self.kinds = {id(layer): kind for layer, kind in zip(layers, kinds, strict=True)}
        of_kind = {kind: [n for n, k in enumerate(kinds) if k == kind] for kind in kinds}
        self.first = {id(layers[numbers[0]]) for numbers in of_kind.values()}
        self.last = {id(layers[numbers[-1]]) for numbers in of_kind.values()}
        self.patterns: dict[tuple[Any, ...], Pattern] = {}

    def wrap(self, run: RunLayer) -> RunLayer:
        """`run`, watched or repeated."""

        def watched(layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
            learning = torch.is_grad_enabled() and layer.training
            # A later micro-batch adds to gradients that are there.
            adds = any(p.grad is not None for p in layer.parameters())
            key = (self.kinds[id(layer)], learning, adds, hidden.shape)
            pattern = self.patterns.setdefault(key, Pattern())
            if id(layer) in self.first:
                return run(layer, hidden, rope, mask)
            known = pattern.forward is not None
            if known and (pattern.backward is not None or id(layer) not in self.last):
                return self._repeat(pattern, layer, hidden)
            return self._record(pattern, run, layer, hidden, rope, mask)

        return watched

    def _record(
        self,
        pattern: Pattern,
        run: RunLayer,
        layer: nn.Module,
        hidden: Tensor,
        rope: Rope,
        mask: Tensor | None,
    ) -> Tensor:
        recorder = _Recorder(self.trace, pattern, layer)
        inside: Tensor = _Mark.apply(hidden, recorder.end_backward)
        recorder.begin_forward(hidden)
        output = run(layer, inside, rope, mask)
        recorder.end_forward(output)
        marked: Tensor = _Mark.apply(output, recorder.begin_backward)
        return marked

    def _repeat(self, pattern: Pattern, layer: nn.Module, hidden: Tensor) -> Tensor:
        trained = [p for p in layer.parameters() if p.requires_grad]
        output: Tensor = _Repeated.apply(hidden, self.trace, pattern, *trained)
        return output


class _Mark(torch.autograd.Function):
    """The identity; calls `reached` with the gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, reached: Callable[[Tensor], None]) -> Tensor:
        ctx.reached = reached
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.reached(gradient)
        return gradient, None


class _Recorder:
    """Turns the trace's events of one layer into its kind's pattern."""

    def __init__(self, trace: MemoryTrace, pattern: Pattern, layer: nn.Module) -> None:
        self.trace, self.pattern = trace, pattern
        self.trained = [p for p in layer.parameters() if p.requires_grad]
        self.start = 0
        self.own: dict[int, int] = {}  # block -> its number by order of birth
        self.sizes: list[int] = []
        self.labels: list[str] = []
        self.input: int | None = None
        self.incoming: int | None = None

    def begin_forward(self, hidden: Tensor) -> None:
        self.start = len(self.trace.recorded)
        self.input = self.trace.block_of(hidden)
        if self.pattern.forward is None:
            self.pattern.input = self.input

    def end_forward(self, output: Tensor) -> None:
        moves = self._moves({self.trace.block_of(output): 0})
        if self.pattern.forward is None:
            self.pattern.forward = moves
            self.pattern.sizes, self.pattern.labels = self.sizes, self.labels
        elif (moves, self.sizes) != (self.pattern.forward, self.pattern.sizes[: len(self.sizes)]):
            raise NotAlike("two decoder layers of one kind use memory differently")

    def begin_backward(self, gradient: Tensor) -> None:
        self.start = len(self.trace.recorded)
        self.incoming = self.trace.block_of(gradient)
        if self.pattern.keeps_input is None:
            self.pattern.keeps_input = self.input in self.trace.live

    def end_backward(self, gradient: Tensor) -> None:
        if self.pattern.backward is not None:
            return
        made = {self.trace.block_of(gradient): 0}
        for number, parameter in enumerate(self.trained, 1):
            if parameter.grad is not None:
                made[self.trace.block_of(parameter.grad)] = number
        self.pattern.backward = self._moves(made)
        self.pattern.sizes, self.pattern.labels = self.sizes, self.labels

    def _moves(self, made: dict[int | None, int]) -> list[Move]:
        """The events since the start, without those of blocks from elsewhere."""
        moves: list[Move] = []
        for block, size in self.trace.recorded[self.start :]:
            if block in made:
                if size > 0:
                    moves.append(("make", made[block]))
            elif size > 0:
                self.own[block] = len(self.sizes)
                self.sizes.append(size)
                self.labels.append(self.trace.labels[block])
                moves.append(("take", self.own[block]))
            elif block in self.own:
                moves.append(("give", self.own[block]))
            elif block in (self.incoming, self.input):
                moves.append(("let go", int(block == self.input)))
        return moves


class _Repeated(torch.autograd.Function):
    """A layer that only moves memory, as its pattern says."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, trace: MemoryTrace, pattern: Pattern, *trained: Tensor
    ) -> Tensor:
        ctx.trace, ctx.pattern, ctx.trained = trace, pattern, trained
        ctx.blocks = {}
        made: dict[int, Tensor] = {}
        for move, number in pattern.forward or []:
            if move == "make":
                made[number] = torch.empty_like(hidden)
            else:
                _move(ctx, move, number)
        if pattern.keeps_input is None:  # has the recorded layer let go of its own by now?
            pattern.keeps_input = pattern.input in trace.live
        if pattern.keeps_input:
            ctx.save_for_backward(hidden)
        return made[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        made: dict[int, Tensor] = {}
        for move, number in ctx.pattern.backward:
            if move == "make":
                made[number] = torch.empty_like(ctx.trained[number - 1] if number else gradient)
            elif move == "let go":
                ctx.trace.give_early(ctx.saved_tensors[0] if number else gradient)
            else:
                _move(ctx, move, number)
        gradients = [made.get(number) for number in range(1, len(ctx.trained) + 1)]
        # A gradient that was added to in place came in and goes out.
        return made.get(0, gradient), None, None, *gradients


def _move(ctx: Any, move: str, number: int) -> None:
    if move == "take":
        ctx.blocks[number] = ctx.trace.take(ctx.pattern.sizes[number], ctx.pattern.labels[number])
    else:
        ctx.trace.give(ctx.blocks.pop(number))
