"""Seconds of answers on a card: the goals of fast answering, each measured through `Segmenter`.

    python benchmarks/fast_answers.py --out FILE [--model 7b]      on a GPU, some three minutes
    python benchmarks/fast_answers.py --table                      docs/inference.md's table

Random weights of the true shapes in NF4. They never end an answer, so the plan's limit does: 64
tokens, or six as a trained model says. The rarest token of each is taken for [SEG]. Runs on the
code of earlier versions too, which answers one question at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from answering import SENTENCE, pictures, plan_of
from tables import put, rows_of

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE, DOCS = ROOT / "benchmarks" / "fast_answers.jsonl", ROOT / "docs" / "inference.md"
BEGIN, END = "<!-- benchmarks/fast_answers.py -->", "<!-- /benchmarks/fast_answers.py -->"
KINDS = ("red", "large", "wet", "old", "soft", "hot", "near", "round")
QUESTIONS = [f"What is {kind} and {how} here?" for kind in KINDS for how in ("useful", "alive")]


def photographs(folder: Path, count: int) -> list[Path]:
    """So many different pictures of 1024 x 768 pixels."""
    from PIL import Image

    found = []
    for number in range(count):
        with Image.open(pictures()[number % 4]) as image:
            left = number // 4
            box = (left, left, image.width - left, image.height - left)
            path = folder / f"{number}.jpg"
            image.convert("RGB").resize((1024, 768), box=box).save(path, quality=92)
        found.append(path)
    return found


class Bench:
    """A loaded model, and what its answers took."""

    def __init__(self, plan: Any, images: list[Path], cache: Path) -> None:
        from trainer.answer.segmenter import Segmenter
        from trainer.answer.trained_model import Trained

        self.segmenter = Segmenter(Trained(plan, None), images, cache, plan=plan)

    def limit(self, new_tokens: int) -> None:
        """Answers of so many tokens from now on."""
        plan = self.segmenter.plan
        limits = plan.tokens.model_copy(update={"max_new_tokens": new_tokens})
        self.segmenter.plan = plan.model_copy(update={"tokens": limits})

    def ask(self, image: Path, texts: list[str]) -> tuple[float, list[Any]]:
        """Seconds, and the answers; together where the code can."""
        import torch

        from trainer.answer.question import Question

        questions = [Question(image, text) for text in texts]
        torch.cuda.synchronize()
        started = time.monotonic()
        together = getattr(self.segmenter, "ask_all", None)
        answers = list(together(questions) if together else map(self.segmenter.ask, questions))
        torch.cuda.synchronize()
        return time.monotonic() - started, answers

    def timed(self, images: list[Path], texts: list[str]) -> dict[str, Any]:
        """Each picture asked about, not twice in a row, with a [SEG] in the answer."""
        seconds, masks, said = [], [], []
        for image, other in zip(images, [*images[1:], images[0]], strict=True):
            _, (first, *_) = self.ask(image, texts)
            spoken = self.segmenter.tokenizer.tokenizer(first.text, add_special_tokens=False)
            self.segmenter.model.seg_token_id = min(spoken.input_ids, key=spoken.input_ids.count)
            self.ask(other, texts[:1])
            took, answers = self.ask(image, texts)
            seconds.append(round(took, 4))
            masks.append([len(one.masks) for one in answers])
            said.append([one.text for one in answers])
        return {"seconds": seconds, "masks": masks, "answers": said}


def agreement(bench: Bench, image: Path) -> dict[str, Any]:
    """How far logits of later tokens are apart, token by token: norms of differences by norms.

    Recorded steps from plain ones; plain ones from themselves, which says what the card's own
    order of sums does; and both from reading all again.
    """
    from dataclasses import replace
    from itertools import islice

    import torch

    from trainer.answer.question import Question
    from trainer.model.answering import Answering

    segmenter, model = bench.segmenter, bench.segmenter.model
    batch = segmenter._batch(image, *segmenter._rows([Question(image, SENTENCE)]))
    batch = batch.to(segmenter.device)
    model.cached = frozenset(batch.inputs)
    found, tokens = [], []
    for records in (True, False, False):
        room = Answering(model, batch.input_ids.shape[1] + 16)
        room.replayed.records &= records
        said, states = zip(*islice(room.greedy(batch, [0]), 12), strict=True)
        found.append(torch.cat(states))
        tokens.append(torch.cat(said))
    with torch.no_grad():
        ids = torch.cat([batch.input_ids, tokens[0][None, :-1]], 1)
        again = model.hidden_states(replace(batch, input_ids=ids))[0, -12:]
        head = model.computed(model.head)
        logits = [head(model.for_head(one)).float() for one in (*found, again)]
    recorded, plain, control, whole = logits

    def apart(one: Any, other: Any) -> list[float]:
        ratios = (one - other).norm(dim=-1) / other.norm(dim=-1)
        return [float(f"{ratio:.3g}") for ratio in ratios.tolist()]

    return {
        "same_tokens": float((tokens[0] == tokens[1]).float().mean()),
        "recorded_from_plain": apart(recorded, plain),
        "plain_from_plain": apart(plain, control),
        "recorded_from_reading_again": apart(recorded, whole),
        "plain_from_reading_again": apart(plain, whole),
    }


def measured(model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Every measurement with one model."""
    import torch

    plan, images = plan_of(model, "nf4", 0), photographs(folder, 64)
    few = images[:4]
    Bench(plan, few, folder / "first cache")  # whatever a process does once on a card
    started = time.monotonic()
    bench = Bench(plan, images, folder / "cache")
    first = time.monotonic() - started
    bench.ask(few[0], [SENTENCE])
    yield {"what": "64 tokens", **bench.timed(few, [SENTENCE])}
    yield {"what": "agreement", "dtype": plan.dtype, **agreement(bench, few[0])}
    bench.limit(6)
    yield {"what": "six tokens, features known", **bench.timed(few, [SENTENCE])}
    yield {"what": "16 questions about a picture", **bench.timed(few[:2], QUESTIONS)}
    took = sum(bench.ask(image, [SENTENCE])[0] for image in images)
    del bench
    torch.cuda.empty_cache()
    started = time.monotonic()
    bench = Bench(plan, images, folder / "cache")
    loading = time.monotonic() - started
    features = first - loading
    yield {"what": "64 pictures", "seconds": [round(took + features, 2)],
           "features_seconds": round(features, 2), "answers_seconds": round(took, 2)}  # fmt: skip
    del bench
    torch.cuda.empty_cache()
    bench = Bench(plan.override(["cached_encoders=[]"]), [], folder)
    bench.limit(6)
    bench.ask(few[0], [SENTENCE])
    yield {"what": "six tokens", **bench.timed(few, [SENTENCE])}
    took = sum(bench.ask(image, [SENTENCE])[0] for image in images)
    yield {"what": "64 pictures, encoders stay", "seconds": [round(took, 2)]}
    del bench
    torch.cuda.empty_cache()
    bench = Bench(plan.override(["dtype=fp32"]), few[:1], folder)
    yield {"what": "agreement", "dtype": "fp32", **agreement(bench, few[0])}


def table() -> list[str]:
    """The medians of benchmarks/fast_answers.jsonl; 7B's also before answers were recorded."""
    rows = [row for row in rows_of(ROWS_FILE) if "seconds" in row]
    taken = {(row["what"], row["model"], row["code"]): statistics.median(row["seconds"])
             for row in rows}  # fmt: skip
    columns = [("7b", "before"), ("7b", "now"), ("qwen3-vl-4b", "now")]
    lines = ["| answer | 7b, before | 7b | qwen3-vl-4b |", "|---|---|---|---|"]
    for what in dict.fromkeys(row["what"] for row in rows):
        times = (f"{taken[what, *column]:.2f} s" if (what, *column) in taken else "not measured"
                 for column in columns)  # fmt: skip
        lines.append(f"| {what} | {' | '.join(times)} |")
    return lines


def main() -> None:
    """Measure, or write the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="7b")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        return put(DOCS, BEGIN, END, table())
    import torch

    from trainer.hardware import versions

    with tempfile.TemporaryDirectory() as name, arguments.out.open("a") as file:
        for row in measured(arguments.model, Path(name)):
            row |= {"code": "now", "model": arguments.model, "gpu": torch.cuda.get_device_name(),
                    "versions": versions()}  # fmt: skip
            file.write(json.dumps(row) + "\n")
            file.flush()
            print({name: value for name, value in row.items() if name != "answers"}, flush=True)


if __name__ == "__main__":
    main()
