"""What a compiled decoder layer takes and gives on a card, move by move, as Inductor's code has it.

profiles/compiled_layers.jsonl, made by benchmarks/compiled_layers.py, has a line for each kind of
layer. Its moves are words: `+n` takes a block of the n-th size, `-n` gives the n-th block that was
taken back, `i` gives the input back; at `?m,n` the kind's first layer times a kernel, on copies of
the m-th and the n-th size, backwards perhaps on the host. What is passed on is named by its number:
the output, the gradient of the input and those of trained tensors. A size is a number of bytes by
the letters T (positions of the micro-batch) and r (the adapters' rank), and what is always there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiles.families import DecoderShape
from profiles.plan import Plan

LAYERS_FILE = Path(__file__).with_name("compiled_layers.jsonl")


@dataclass(frozen=True)
class Moves:
    """A layer's moves forward and backward, the sizes they name, in bytes, and blocks passed on."""

    sizes: tuple[int, ...]
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    output: int
    gradient: int  # of the input
    trained: frozenset[int]  # gradients of trained tensors


def kind_of(plan: Plan, recomputed: bool) -> str:
    """The name of the kind of layer that the plan compiles; different kinds have different names.

    A kind whose code is that of the one without its last word has no line in the file.
    """
    lora = plan.lora
    adapters = f"{lora.targets} {'dropped' if lora.dropout else 'plain'}" if lora else "frozen"
    run = "recomputed" if recomputed else "kept"
    masked = " masked" if plan.questions_per_picture > 1 else ""
    # Code that is written after another layer's: see benchmarks/inductor_code.py.
    after = not recomputed and plan.checkpointed_layers and plan.quantization != "none"
    name = f"{shape_of(plan.profile.decoder)} {plan.quantization} {adapters} {run}{masked}"
    return name + " later" * bool(after) + " apart" * turned_apart(plan)


def turned_apart(plan: Plan) -> bool:
    """Whether queries and keys are rotated by a kernel each, though they read the same angles.

    Inductor fuses both into one kernel unless that could raise the peak: unless the values that it
    could reuse exceed 32 times the bytes that fusion saves reading (torch's
    `can_fusion_increase_peak_memory`). Where all rows share their angles, as LLaVA's do, it
    compares rows · heads · channels with 32 · 2 tables · channels · 2 bytes, for each position.
    """
    shared = plan.questions_per_picture == 1 and not plan.profile.decoder.normed_heads
    return shared and plan.micro_batch * plan.profile.decoder.heads > 128


def shape_of(decoder: DecoderShape) -> str:
    """The sizes of one layer, in channels."""
    sizes = decoder.hidden, decoder.intermediate, decoder.query_channels, decoder.key_channels
    normed = "-normed" if decoder.normed_heads else ""
    return "-".join(map(str, (*sizes, decoder.heads))) + normed


def _moves(plan: Plan, recomputed: bool, length: int) -> Moves | None:
    if not plan.compile or plan.products != "dtype" or plan.dtype not in ("bf16", "fp16"):
        return None
    line = line_for(kind_of(plan, recomputed), _lines())
    if line is None:
        return None
    letters = {"T": plan.micro_batch * length, "r": plan.lora.rank if plan.lora else 0}
    found = json.loads(line)
    sizes = tuple(_bytes(size, letters) for size in found["sizes"].split())
    forward, backward = (tuple(found[way].split()) for way in ("forward", "backward"))
    passed_on = found["output"], found["gradient"], frozenset(found["trained"])
    return Moves(sizes, forward, backward, *passed_on)


def moves_of(plan: Plan, length: int = 0) -> dict[bool, Moves]:
    """The moves of the plan's compiled layers at rows of `length` positions, by whether a layer is
    recomputed. Empty where the code of a kind that the plan has is not known."""
    number = plan.checkpointed_layers
    kinds = {n < number for n in range(plan.profile.decoder.layers)}
    found = {recomputed: _moves(plan, recomputed, length) for recomputed in kinds}
    return {kind: moves for kind, moves in found.items() if moves} if all(found.values()) else {}


def _bytes(size: str, letters: dict[str, int]) -> int:
    """`8192T`, `368640Tr` or `16512T+256` in bytes."""
    growing, _, always = size.partition("+")
    found = int(growing.rstrip("Tr"))
    for letter in growing.lstrip("0123456789"):
        found *= letters[letter]
    return found + int(always or 0)


def line_for(kind: str, lines: dict[str, str]) -> str | None:
    """The kind's line, or that of the kind whose code it has."""
    for word in (" apart", " later"):
        if kind not in lines:
            kind = kind.removesuffix(word)
    return lines.get(kind)


@cache
def _lines() -> dict[str, str]:
    """The file's lines by their kinds, which begin each."""
    lines = LAYERS_FILE.read_text(encoding="utf-8").splitlines()
    return {line.split('"', 4)[3]: line for line in lines}
