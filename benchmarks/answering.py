"""Memory of lisa-segment: four photographs under the caps of small cards.

    python benchmarks/answering.py --out FILE      on a GPU, each row in a process of its own
    python benchmarks/answering.py --table         docs/inference.md's table, forecasts made anew

Random weights of the true shapes: they never end an answer, so each is as long as a plan allows.
One of the tokens that they say is taken for [SEG], so that masks are decoded as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lean
from forecast import CARD
from tables import put, rows_of

from advisor.inference import worst_question
from advisor.memory.forecast import forecast
from profiles.environment import ALLOCATOR_VARIABLES
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE = ROOT / "benchmarks" / "answering.jsonl"
DOCS = ROOT / "docs" / "inference.md"
BEGIN, END = "<!-- benchmarks/answering.py -->", "<!-- /benchmarks/answering.py -->"
PHOTOS = ROOT / "tests" / "photos" / "ReasonSeg"
SENTENCE = "Which part of this picture would somebody reach for first, and what is it good for?"
CARDS = ((6, "7b", "nf4", 0), (8, "7b", "int8", 8), (6, "7b", "none", 24), (16, "7b", "none", 0),
         (8, "13b", "nf4", 10),
         (4, "qwen3-vl-2b", "nf4", 0), (4, "qwen3-vl-4b", "nf4", 0), (8, "qwen3-vl-8b", "nf4", 0),
         (12, "qwen3-vl-4b", "none", 0))  # fmt: skip


def plan_of(model: str, storage: str, host: int) -> Plan:
    """A plan for answering, `host` layers in host memory."""
    layers = Plan.parse({"model": model}).profile.decoder.layers
    return Plan.parse({
        "model": model, "weights": "random", "device": "cuda", "quantization": storage,
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "qv"},
        "micro_batch": 1, "accumulation": 1, "host_layers": host, "host_embeddings": host > 0,
        "checkpointed_layers": layers if host else 0,
    })  # fmt: skip


def pictures() -> list[Path]:
    """The four photographs that are asked about."""
    return sorted(PHOTOS.glob("*/*.jpg"))[:4]


def image_tokens_of(row: dict[str, Any], plan: Plan) -> int:
    """Tokens of a row's largest picture; the first rows did not say, and are of these pictures."""
    from trainer.data.samples import image_tokens

    return row.get("image_tokens") or max(image_tokens(path, plan) for path in pictures())


def measure(plan: Plan, cap_gib: float) -> dict[str, Any]:
    """Ask about the photographs in this process, under the cap."""
    import torch

    from trainer.answer.question import Question
    from trainer.answer.segmenter import Segmenter, largest_picture, longest_question
    from trainer.answer.trained_model import Trained
    from trainer.hardware import versions

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(cap_gib * 2**30 / total)
    questions = [Question(path, SENTENCE) for path in pictures()]
    with tempfile.TemporaryDirectory() as cache:
        started = time.monotonic()
        segmenter = Segmenter(Trained(plan, None), pictures(), Path(cache), plan=plan)
        torch.cuda.synchronize()
        ready = time.monotonic() - started
        first = segmenter.ask(questions[0])  # warms up
        spoken = segmenter.tokenizer.tokenizer(first.text, add_special_tokens=False).input_ids
        segmenter.model.seg_token_id = spoken[len(spoken) // 2]
        answers = [segmenter.ask(question) for question in questions]
        text = longest_question(questions, segmenter.tokenizer)
    return {
        "pictures": len(questions), "seconds": [round(a.seconds, 3) for a in answers],
        "masks": [len(a.masks) for a in answers], "ready_seconds": round(ready, 1),
        "text_tokens": text, "image_tokens": largest_picture(questions, plan),
        "new_tokens": plan.tokens.max_new_tokens,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "gpu": torch.cuda.get_device_name(), "versions": versions(),
        "recorded": segmenter.model.host_layers is None,  # later tokens, as a CUDA graph
    }  # fmt: skip


def run(out: Path, models: list[str]) -> None:
    """Every row, or those of some models, one after the other."""
    for card, model, storage, host in CARDS:
        if models and model not in models:
            continue
        plan = plan_of(model, storage, host)
        asked = json.dumps({"plan": plan.model_dump(mode="json"), "cap": lean.CARDS[card]})
        command = [sys.executable, __file__, "--child", asked]
        environ = os.environ | dict.fromkeys(ALLOCATOR_VARIABLES, plan.allocator)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)
        if done.returncode:
            print(card, model, storage, host, done.stderr[-1500:], flush=True)
            continue
        row = {"card_gb": card, "cap_gib": lean.CARDS[card], "plan": plan.model_dump(mode="json")}
        row |= json.loads(done.stdout.splitlines()[-1])
        print(card, model, storage, host, row["peak_reserved_bytes"] / 2**30, row["seconds"],
              row["masks"], flush=True)  # fmt: skip
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/inference.md between its marks."""
    table = ["| card | model | base | on the host | tensors, forecast | measured | pool, forecast "
             "| measured | ready in | a picture |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        plan = Plan.parse(row["plan"])
        if not plan.host_layers and not row.get("recorded"):
            continue  # of older code; benchmarks/speed.py has launches from them
        worst = worst_question(row["text_tokens"], image_tokens_of(row, plan))
        found = forecast(plan, worst, CARD)
        cells = [f"{row['card_gb']} GB", plan.model, plan.quantization,
                 f"{plan.host_layers} layers" if plan.host_layers else "–"]  # fmt: skip
        for tier, name in (("tensors", "allocated"), ("pool", "reserved")):
            said, took = found.tier(tier).bytes, row[f"peak_{name}_bytes"]  # type: ignore[arg-type]
            cells += [f"{said / 2**30:.2f}", f"{took / 2**30:.2f} ({said / took - 1:+.1%})"]
        first, *others = row["seconds"]  # the first picture's steps are recorded
        cells += [f"{row['ready_seconds']:.0f} s", f"{statistics.median(others):.1f} s"]
        table.append(f"| {' | '.join(cells)} |")
    put(DOCS, BEGIN, END, table)
    print("\n".join(table))


def main() -> None:
    """Measure, or write the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asked = json.loads(arguments.child)
        print(json.dumps(measure(Plan.parse(asked["plan"]), asked["cap"])))
    elif arguments.table:
        write_table(rows_of(ROWS_FILE))
    else:
        run(arguments.out, arguments.models)


if __name__ == "__main__":
    main()
