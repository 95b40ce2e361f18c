"""The grid of forecasts from which `lisa-advise` answers at once: profiles/grid.jsonl.

    python benchmarks/grid.py [MODEL ...]      the models' corners anew, or those that are missing

No GPU; 84 corners a model and storage, some 4 s of CPU each. Each is a forecast of the real step
(`trainer.rehearse.fake` and the allocator's replay).
Between corners the advisor interpolates (`profiles.grid` says why that is hardly ever too little).
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from profiles.grid import (
    GRID_FILE,
    MICRO_BATCHES,
    QUESTIONS,
    TEXT_TOKENS,
    reliefs,
)
from profiles.host_memory import batch_bytes
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("7b", "13b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "sa2va-qwen3-vl-2b",
          "sa2va-qwen3-vl-4b")  # fmt: skip
QUANTIZATIONS = ("none", "int8", "nf4")
CAPABILITY = (9, 0)  # cuBLAS takes most there: 48 MiB more than on the cards before


def corners(model: str, quantization: str) -> list[dict[str, Any]]:
    """All corners of one model in one storage, in a process that imports once."""
    from advisor.memory.forecast import interpret
    from trainer.rehearse.fake import fake_rehearsal

    rows = []
    places = product(QUESTIONS, (False, True), MICRO_BATCHES, TEXT_TOKENS)
    for questions, hosted, micro_batch, text in places:
        for checkpointed, host_layers in reliefs(model, hosted):
            settings = {
                "model": model, "quantization": quantization, "device": "cuda",
                "host_embeddings": hosted, "checkpointed_layers": checkpointed,
                "host_layers": host_layers, "micro_batch": micro_batch, "accumulation": 2,
            } | ({"questions_per_picture": questions} if questions > 1 else {})  # fmt: skip
            plan = Plan.parse(settings)
            # What is traced is the same: compiled layers' saving is taken off its peaks.
            compiled, events = fake_rehearsal(
                plan.override(["compile=true"]), text, questions, CAPABILITY, by_code=False
            )
            found = interpret(compiled.model_copy(update={"plan": plan}), events)
            tensors = found.tier("tensors").bytes
            after = max(compiled.load_peak_bytes or 0, *compiled.phases.values())
            rows.append(settings | {
                "text_tokens": text,
                "tensors_bytes": tensors,
                "pool_bytes": found.tier("pool").bytes,
                # Without the batches, which a plan of more forward passes has more of.
                "host_bytes": found.tier("host").bytes - batch_bytes(plan),
                "compiled_less_bytes": tensors - after,
            } | standing(plan))  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def standing(plan: Plan) -> dict[str, int]:
    """Bytes on the card throughout a step: weights that are not trained, and all that is."""
    from trainer.model.build import counting_tokenizer
    from trainer.model.footprint import needed_bytes

    needed = needed_bytes(plan, counting_tokenizer(plan))
    trained = needed["trained"] + needed["gradients"] + needed["optimizer"]
    return {"frozen_bytes": needed["frozen"], "trained_bytes": trained}


def pair_of(line: str) -> tuple[str, str]:
    """Model and storage of a corner's line."""
    corner = json.loads(line)
    return corner["model"], corner["quantization"]


def child(pair: tuple[str, str]) -> str:
    """The corners of one pair, as JSON lines."""
    done = subprocess.run([sys.executable, __file__, *pair], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


def main() -> None:
    """Make the named models' corners anew, or those that are missing.

    With a model and a storage, print the corners of these two alone.
    """
    if len(sys.argv) == 3 and sys.argv[2] in QUANTIZATIONS:
        for row in corners(*sys.argv[1:]):
            print(json.dumps(row))
        return
    standing = GRID_FILE.read_text().splitlines(keepends=True)
    pairs = [pair_of(line) for line in standing]
    wanted = list(product(sys.argv[1:], QUANTIZATIONS))
    wanted = wanted or [pair for pair in product(MODELS, QUANTIZATIONS) if pair not in pairs]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(child, wanted))
    kept = [line for line, pair in zip(standing, pairs, strict=True) if pair not in wanted]
    GRID_FILE.write_text("".join(kept + made))


if __name__ == "__main__":
    main()
