"""Moves of compiled decoder layers: profiles/compiled_layers.jsonl, which forecasts read.

    pip install --no-deps triton
    python benchmarks/compiled_layers.py [PATTERN ...]     kinds anew; no GPU, 15 s of CPU each

Kinds that end in later or apart were made with torch 2.11, the others with 2.13. One kind of layer
at one size is enough: 17 divides the positions and 23 the rank, and no other size, so that each
size says how it grows.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from math import prod
from multiprocessing import get_context
from typing import Any

import torch
from inductor_code import Code, graphs_of

from profiles.compiled_layers import LAYERS_FILE, kind_of, line_for
from profiles.plan import Plan
from trainer.rehearse.card_kernels import HIDDEN, WORKSPACE_EDGE

MODELS = ("tiny", "7b", "13b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b")
TOKENS, RANK = 6 * 32 * 17, 8 * 23
ROWS = 3, 6  # with more rows the code may be another (`turned_apart`)
WIDTHS = {"bf16": 2, "f32": 4, "i8": 1, "u8": 1, "i64": 8, "b8": 1, "i32": 4,
          "bfloat16": 2, "float32": 4, "int64": 8, "bool": 1, "uint8": 1, "int32": 4}  # fmt: skip
TENSOR = re.compile(r"(\w+): ['\"]?(bf16|f32|i8|u8|i64|b8|i32)\[([\d, ]*)\]")
VIEW = r"reinterpret_tensor\((\w+), \([^()]*\), \([^()]*\), \d+\)"
TAKEN = re.compile(r"empty_strided_cuda\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)")


def size_of(count: int) -> str:
    """A number of bytes by T and r, as profiles/compiled_layers.py reads it."""
    letters = ""
    for letter, prime, whole in (("T", 17, TOKENS), ("r", 23, RANK)):
        if count % prime == 0:
            assert count % whole == 0 and count // whole % prime, count
            count, letters = count // whole, letters + letter
    return f"{count}{letters}"


@dataclass(eq=False)
class Block:
    """Bytes with as many names as there are; `given` ones were there before the graph."""

    size: str
    given: bool = False
    names: int = 0


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(" ", "").split(",") if number]


class Graph:
    """One graph: its inputs' shapes, and what its code does with memory."""

    def __init__(self, part: Code, plan: Plan) -> None:
        body = part.code[part.code.index("def call(") :]
        self.body = body[: body.index("runner =")] if "runner =" in body else body
        head = next(line for line in part.readable.splitlines() if "def forward(self," in line)
        self.shapes = {name: (kind, numbers(dims)) for name, kind, dims in TENSOR.findall(head)}
        self.back = part.back
        self.plan, self.code, self.tried = plan, part.code, set[str]()
        self.moves: list[tuple[str, Any]] = []
        self.names: dict[str, list[Block]] = {}

    def bytes_of(self, name: str) -> int:
        kind, shape = self.shapes[name]
        return WIDTHS[kind] * prod(shape)

    def take(self, size: int | str) -> Block:
        block = Block(size if isinstance(size, str) else size_of(size))
        self.moves.append(("take", block))
        return block

    def bind(self, name: str, blocks: list[Block]) -> None:
        for block in blocks:
            block.names += 1
        self.drop(name)
        self.names[name] = blocks

    def drop(self, name: str, kept: frozenset[Block] = frozenset()) -> None:
        for block in self.names.pop(name, []):
            block.names -= 1
            if not block.names and block not in kept:
                self.moves.append(("give", block))

    def run(self, inputs: dict[str, Block]) -> list[Block | None]:
        """What the code returns; `inputs` lose their names as it goes."""
        for name, block in inputs.items():
            self.bind(name, [block])
        returned: list[str] = []
        for line in re.split(r"[\n;]", self.body):
            line = line.strip().split("  #")[0]
            if line.startswith("del "):
                self.drop(line[4:].strip())
            elif line.startswith("return ("):
                returned = [m[0] for m in re.finditer(rf"{VIEW}|\w+", line[8:])]
            elif found := re.match(r"(triton_poi\w+)\.run\((.*)", line):
                self.launch(*found.groups())
            elif found := re.match(r"(\w+) = (.*)", line):
                self.assign(*found.groups())
        results = [self.named(text) for text in returned]
        kept = frozenset(block for block in results if block is not None)
        for name in list(self.names):
            self.drop(name, kept)
        return results

    def launch(self, kernel: str, rest: str) -> None:
        """An element-wise kernel: at its first launch two of its forms are timed, on copies of what
        it changes (`CachingAutotuner.benchmark_all_configs`). Backwards they may be on the host,
        where the widest, which is the MLP's, is all that counts."""
        if kernel in self.tried:
            return
        self.tried.add(kernel)
        names = self.code[self.code.index(f"def {kernel}(") :].split("(", 1)[1].split(", ")
        given = [self.names[m[1] or m[0]][0] if (m[1] or m[0]) in self.names else None
                 for m in re.finditer(rf"{VIEW}|\w+", rest)]  # fmt: skip
        widest = size_of(2 * TOKENS * self.plan.profile.decoder.intermediate)
        copied = [block for name, block in zip(names, given, strict=False)
                  if name.startswith("in_out") and block
                  and (not self.back or block.size == widest)]  # fmt: skip
        self.moves.append(("try", copied))

    def named(self, text: str) -> Block | None:
        found = re.match(VIEW, text)
        return None if text == "None" else self.names[found[1] if found else text][0]

    def assign(self, name: str, value: str) -> None:
        if found := TAKEN.match(value):
            self.bind(name, [self.take(max(1, prod(numbers(found[1]))) * WIDTHS[found[2]])])
        elif value.startswith("torch.ops."):
            self.bind(name, self.operator(value))
        elif found := re.match(r"(\w+)\[(\d+)\]$", value):
            self.bind(name, [self.names[found[1]][int(found[2])]])
        elif (found := re.match(VIEW, value) or re.match(r"(\w+)$", value)) and (
            found[1] in self.names
        ):
            self.bind(name, self.names[found[1]])

    def operator(self, call: str) -> list[Block]:
        """The results of an operator that takes its own memory."""
        inner = call[call.index("(") + 1 :]
        arguments = [m[1] or m[0] for m in re.finditer(rf"{VIEW}|[\w.]+", inner)]
        if "lisa_preflight" in call:
            return self.product(call.split(".")[3], arguments)
        assert "attention" in call or "seeds" in call, call
        if "attention" not in call:
            return [self.take(128)]
        decoder = self.plan.profile.decoder
        query, key, heads = decoder.query_channels, decoder.key_channels, decoder.heads
        if "backward" not in call:
            return [self.take(TOKENS * query * 2), self.take(TOKENS * heads * 4)]
        made = [self.take(TOKENS * width * 2) for width in (query, key, key)]
        each = query * 4 + heads * 4
        if key < query and not self.masked(arguments):
            each += query * 4  # one head's keys and values for each query's
        workspace = self.take(f"{each}T+{WORKSPACE_EDGE}")
        self.moves.append(("give", workspace))
        return made

    @staticmethod
    def masked(arguments: list[str]) -> bool:
        return "attn_mask" in arguments

    def product(self, name: str, arguments: list[str]) -> list[Block]:
        """A product by a quantised weight, with what is inside of it (`memory_trace.HIDDEN`)."""
        stored = self.shapes[arguments[1]][1]
        rows, back = (int(arguments[6]), arguments[7]) if "nf4" in name else (stored[0], "")
        back = (back or arguments[3]) == "True"
        columns = prod(stored) * 2 // rows if "nf4" in name else stored[1]
        shape = TOKENS, rows if back else columns
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        weights = [torch.empty(self.shapes[a][1], dtype=torch.uint8, device="meta")
                   for a in arguments[1:3]]  # fmt: skip
        rest = () if "nf4" in name else (back,)
        before, held, _ = HIDDEN[getattr(torch.ops.lisa_preflight, name)](x, *weights, *rest)
        early, late = [self.take(size) for size in before], [self.take(size) for size in held]
        self.moves += [("give", block) for block in early]
        result = self.take(TOKENS * (columns if back else rows) * 2)
        self.moves += [("give", block) for block in late]
        return [result]


def line_of(kind: str, plan: Plan, parts: list[Code]) -> str:
    """The kind's line in the file."""
    forward, backward = (Graph(part, plan) for part in sorted(parts, key=lambda p: p.back))
    shape = (plan.micro_batch, TOKENS // plan.micro_batch, plan.profile.decoder.hidden)
    hidden = next(name for name, has in forward.shapes.items() if has == ("bf16", [*shape]))
    given = {name: Block("", True, 1) for name in forward.shapes}
    given[hidden].names = 0
    output, *saved = forward.run(dict(given))
    after = [name for name in backward.shapes if not name.startswith("tangents")]
    inputs = dict(zip(after, saved, strict=True))
    for block in inputs.values():
        block.names = 0  # the backward pass alone holds what was saved
    tangents = {name: Block("", True, 1) for name in backward.shapes if name not in inputs}
    results = backward.run(inputs | tangents)
    place = [*given].index(hidden)
    sizes: list[str] = []
    numbered: dict[Block, int] = {}

    def place_of(size: str) -> str:
        if size not in sizes:
            sizes.append(size)
        return str(sizes.index(size))

    def said(moves: list[tuple[str, Any]]) -> Iterator[str]:
        for move, block in moves:
            if move == "try":
                yield "?" + ",".join(place_of(copied.size) for copied in block)
            elif move == "take":
                numbered[block] = len(numbered)
                yield "+" + place_of(block.size)
            elif block is given[hidden]:
                yield "i"
            elif block in numbered:
                yield f"-{numbered[block]}"

    # Going forward the caller holds the input until the layer has returned.
    words = [word for word in said(forward.moves) if word != "i"]
    moves = {"forward": " ".join(words), "backward": " ".join(said(backward.moves))}
    trained = [numbered[block] for n, block in enumerate(results) if block and n != place]
    last = {"output": numbered[output], "gradient": numbered[results[place]], "trained": trained}
    return json.dumps({"kind": kind, "sizes": " ".join(sizes)} | moves | last)


def kinds() -> dict[str, tuple[Plan, bool]]:
    """Every kind of layer, with a plan that has it and whether it is recomputed."""
    found = {}
    loras: list[dict[str, Any] | None] = [None]
    loras += [
        {"rank": RANK, "dropout": dropout, "targets": targets}
        for targets, dropout in product(("qv", "attention", "all-linear"), (0.0, 0.05))
    ]
    runs = (0, False), (1, True), (1, False)
    for model, storage, lora, (layers, recomputed), questions, rows in product(
        MODELS, ("none", "int8", "nf4"), loras, runs, (1, 3), ROWS
    ):
        plan = Plan.parse({"model": model, "quantization": storage, "device": "cuda", "lora": lora,
                           "weights": "random", "questions_per_picture": questions,
                           "checkpointed_layers": layers, "micro_batch": rows})  # fmt: skip
        found.setdefault(kind_of(plan, recomputed), (plan, recomputed))
    return found


def made(kind: str) -> str:
    """The kind's line, in a process of its own; empty where torch writes no code for it."""
    torch.set_num_threads(1)
    plan, recomputed = kinds()[kind]
    try:
        parts = graphs_of(plan, TOKENS // plan.micro_batch, recomputed, " later" in kind)
        return line_of(kind, plan, parts)
    except Exception as error:
        print(f"{kind}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return ""


def repeated(kind: str, lines: dict[str, str]) -> bool:
    """Whether another kind's line, which is taken where there is none, has the same code."""
    rest = {other: line for other, line in lines.items() if other != kind}
    other = line_for(kind, rest)
    return other is not None and lines[kind].split(", ", 1)[1] == other.split(", ", 1)[1]


def main() -> None:
    """Make the kinds whose names match a pattern; the others are kept."""
    patterns = sys.argv[1:] or ["*"]
    kept = LAYERS_FILE.read_text().splitlines() if LAYERS_FILE.exists() else []
    lines = {json.loads(line)["kind"]: line for line in kept}
    wanted = [kind for kind in kinds() if any(fnmatch(kind, p) for p in patterns)]
    processes = len(os.sched_getaffinity(0))
    with get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for line in filter(None, pool.imap(made, wanted)):
            lines[json.loads(line)["kind"]] = line
    order = [kind for kind in kinds() if kind in lines and not repeated(kind, lines)]
    LAYERS_FILE.write_text("".join(f"{lines[kind]}\n" for kind in order))


if __name__ == "__main__":
    main()
