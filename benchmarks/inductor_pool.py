"""The pool of compiled plans by Inductor's own code: benchmarks/inductor.jsonl.

    pip install --no-deps triton
    python benchmarks/inductor_pool.py NAME ...      measured rows; no GPU, half a minute each

A fake rehearsal plays plain decoder layers. Here it plays in their place what the code of
benchmarks/inductor_code.py does with memory. Nothing is fitted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from forecast import rows

import trainer.rehearse.fake as fake
from advisor.memory.allocator import replay
from profiles.plan import Plan
from trainer.rehearse.memory_trace import HIDDEN, rounded
from trainer.rehearse.repeated_layers import Pattern, Repeater

ROWS_FILE = Path(__file__).with_name("inductor.jsonl")
WIDTHS = {"bf16": 2, "f32": 4, "i8": 1, "u8": 1, "i64": 8, "b8": 1, "i32": 4,
          "bfloat16": 2, "float32": 4, "int64": 8, "bool": 1, "uint8": 1, "int32": 4}  # fmt: skip
TENSOR = re.compile(r"(\w+): ['\"]?(bf16|f32|i8|u8|i64|b8|i32)\[([\d, ]*)\]")
VIEW = r"reinterpret_tensor\((\w+), \([^()]*\), \([^()]*\), \d+\)"
TAKEN = re.compile(r"empty_strided_cuda\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)")


@dataclass(eq=False)
class Block:
    """Bytes with as many names as there are; `given` ones were there before the graph."""

    size: int
    given: bool = False
    names: int = 0


Moves = list[tuple[str, Block]]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(" ", "").split(",") if number]


class Graph:
    """One graph: its inputs' shapes, and what its code does with memory."""

    def __init__(self, part: str, plan: Plan, tokens: int) -> None:
        readable, code = part.split("##### CODE")
        body = code[code.index("def call(") :]
        self.body = body[: body.index("runner =")] if "runner =" in body else body
        head = next(line for line in readable.splitlines() if "def forward(self," in line)
        self.shapes = {name: (kind, numbers(dims)) for name, kind, dims in TENSOR.findall(head)}
        self.plan, self.tokens = plan, tokens
        self.moves: Moves = []
        self.names: dict[str, list[Block]] = {}

    def size(self, name: str) -> int:
        kind, shape = self.shapes[name]
        return WIDTHS[kind] * prod(shape)

    def take(self, size: int) -> Block:
        self.moves.append(("take", block := Block(size)))
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
            elif found := re.match(r"(\w+) = (.*)", line):
                self.assign(*found.groups())
        results = [self.named(text) for text in returned]
        kept = frozenset(block for block in results if block is not None)
        for name in list(self.names):
            self.drop(name, kept)
        return results

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
        decoder, tokens = self.plan.profile.decoder, self.tokens
        inner = call[call.index("(") + 1 :]
        arguments = [m[1] or m[0] for m in re.finditer(rf"{VIEW}|[\w.]+", inner)]
        if "lisa_preflight" in call:
            return self.product(call.split(".")[3], arguments)
        query, key = decoder.query_channels, decoder.key_channels
        sums = tokens * query // 128 * 4
        if "attention" in call and "backward" in call:
            held = [self.take(tokens * query * 4), self.take(sums)]
            made = [self.take(tokens * width * 2) for width in (query, key, key)]
            self.moves += [("give", block) for block in held]
            return made
        if "attention" in call:
            return [self.take(tokens * query * 2), self.take(sums)]
        return [self.take(128)]  # seeds

    def product(self, name: str, arguments: list[str]) -> list[Block]:
        """A product by a quantised weight, with what is inside of it (`memory_trace.HIDDEN`)."""
        stored = self.shapes[arguments[1]][1]
        rows, back = (int(arguments[6]), arguments[7]) if "nf4" in name else (stored[0], "")
        back = (back or arguments[3]) == "True"
        columns = prod(stored) * 2 // rows if "nf4" in name else stored[1]
        meta = partial_empty(self.tokens, rows if back else columns)
        weights = [torch.empty(self.shapes[a][1], dtype=torch.uint8, device="meta")
                   for a in arguments[1:3]]  # fmt: skip
        rest = () if "nf4" in name else (back,)
        before, held = HIDDEN[getattr(torch.ops.lisa_preflight, name)](meta, *weights, *rest)
        early, late = [self.take(size) for size in before], [self.take(size) for size in held]
        self.moves += [("give", block) for block in early]
        result = self.take(self.tokens * (columns if back else rows) * 2)
        self.moves += [("give", block) for block in late]
        return [result]


def partial_empty(rows_: int, columns: int) -> torch.Tensor:
    return torch.empty(rows_, columns, dtype=torch.bfloat16, device="meta")


def pattern(text: str, plan: Plan, count: tuple[int, int], trained: list[int], adds: bool) -> Any:
    """What the compiled layer does; `trained`: bytes of each trained tensor's gradient."""
    tokens = prod(count)
    forward, backward = (Graph(p, plan, tokens) for p in text.split("##### BACKWARD"))
    shape = ("bf16", [*count, plan.profile.decoder.hidden])
    hidden = next(name for name, has in forward.shapes.items() if has == shape)
    given = {name: Block(forward.size(name), True, 1) for name in forward.shapes}
    given[hidden].names = 0
    output, *saved = forward.run(given)
    after = [name for name in backward.shapes if not name.startswith("tangents")]
    inputs = dict(zip(after, saved, strict=True))
    tangents = {n: Block(backward.size(n), True, 1) for n in backward.shapes if n not in inputs}
    results = backward.run(inputs | tangents)
    made = {block: 0 for n, block in enumerate(results) if block and n == [*given].index(hidden)}
    left = list(range(len(trained)))
    gradients = [b for n, b in enumerate(results) if b and n != [*given].index(hidden)]
    for block in gradients if not adds else ():
        place = next(n for n in left if trained[n] == block.size)
        left.remove(place)
        made[block] = place + 1
    found, own = Pattern(keeps_input=given[hidden] in saved), {}

    def moves(of: Moves, seen: dict[Any, int], label: str) -> Any:
        for what, block in of:
            if block.given:
                continue
            if what == "take" and block in seen:
                yield "make", seen[block]
                continue
            if what == "take":
                own[block] = len(found.sizes)
                found.sizes.append(rounded(block.size))
                found.labels.append(label)
            if block in own:
                yield what, own[block]

    found.forward = list(moves(forward.moves, {output: 0}, "forward"))
    found.backward = list(moves(backward.moves, made, "backward"))
    found.backward += [("give", own[block]) for block in gradients if adds]  # added to the sum
    return found


@cache
def code(plan: Plan, rows_: int, tokens: int, kind: str) -> str:
    """Both graphs' code, from a process of its own."""
    lora = plan.lora
    said = (lora.rank, lora.targets, lora.dropout) if lora else (0, "qv", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(__file__).with_name("inductor_code.py"), Path(folder) / "code"
        settings = (plan.model, plan.quantization, *said, rows_, tokens, kind, out)
        subprocess.run([sys.executable, script, *map(str, settings)], check=True)
        return out.read_text()


def play(plan: Plan) -> Callable[..., None]:
    """In place of `fake._repeat_layers`: learning layers do what the code does."""

    def repeat_layers(model: Any, trace: Any, _: Plan) -> None:
        number = plan.checkpointed_layers
        kinds = ["recomputed" if n < number else "kept" for n in range(len(model.runs))]
        repeater, seen = Repeater(trace, model.decoder_layers, kinds), {}

        def played(run: Any, kind: str) -> Any:
            plain = repeater.wrap(run)

            def layer_run(layer: Any, hidden: Any, rope: Any, mask: Any) -> Any:
                if not (torch.is_grad_enabled() and layer.training and hidden.requires_grad):
                    return plain(layer, hidden, rope, mask)
                learnt = [p for p in layer.parameters() if p.requires_grad]
                key = kind, any(p.grad is not None for p in learnt)
                if key not in seen:
                    count, sizes = tuple(hidden.shape[:2]), [p.numel() * 4 for p in learnt]
                    seen[key] = pattern(code(plan, *count, kind), plan, count, sizes, key[1])
                return repeater._repeat(seen[key], layer, hidden)

            return layer_run

        model.runs = [played(run, kind) for run, kind in zip(model.runs, kinds, strict=True)]
        model.run_evaluating = repeater.wrap(fake.run_layer)
        model.features = fake.RepeatedEncoder(trace, model)

    return repeat_layers


def compare(record: dict[str, Any]) -> dict[str, Any]:
    """Tensors and pool of a measured row by the code of its layers, in bytes."""
    measured = record["measurement"]
    plan = Plan.parse(measured["plan"])
    fake._repeat_layers = play(plan)
    fake.compiled_saving = lambda *_: {}
    told, events = fake.fake_rehearsal(plan, measured["text_tokens"][1], measured["masks"], (9, 0))
    pool = replay(events, "expandable_segments:True" in plan.allocator).peak_reserved
    took = {name: measured[f"peak_{name}_bytes"] for name in ("allocated", "reserved")}
    found = {"allocated": told.peak_allocated_bytes, "reserved": pool}
    off = {name: f"{100 * (found[name] / took[name] - 1):+.2f} %" for name in took}
    print(record["name"], off, flush=True)
    return {"name": record["name"], "forecast": found, "measured": took}


def main() -> None:
    """Compare the named rows; the others are kept."""
    kept = list(map(json.loads, ROWS_FILE.open())) if ROWS_FILE.exists() else []
    made = [compare(record) for record in rows() if record["name"] in sys.argv[1:]]
    by_name = {row["name"]: row for row in [*kept, *made]}
    ROWS_FILE.write_text("".join(json.dumps(by_name[name]) + "\n" for name in sorted(by_name)))


if __name__ == "__main__":
    main()
