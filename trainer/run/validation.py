"""Evaluation within a run: masks for the validation split, and their scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from profiles.text import counted
from trainer.data.samples import Sample, SampleSet, collate
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.tokenizer import ConversationTokenizer
from trainer.reporter import Reporter
from trainer.run.metrics import MaskScores


def describe(result: dict[str, Any]) -> str:
    """One line of an evaluation's figures."""
    if not result["images"]:
        return "no validation question"
    questions = counted(result["images"], "question")  # called images since the first records
    return f"gIoU {result['giou']:.3f}, cIoU {result['ciou']:.3f} over {questions}"


def outcome(summary: dict[str, Any], folder: Path) -> list[str]:
    """Results of a run: before training, the best (its checkpoint is in `folder`), and the last."""
    best, epochs = summary["best"], summary["epochs"]
    lines = [f"before  {describe(summary['before'])}"]
    if best is not None:  # None: resumed from an old checkpoint that lacks it
        kept = folder / "best"
        lines.append(f"best    {describe(best)}, epoch {best['epoch']} of {epochs}, in {kept}")
    lines.append(f"last    {describe(summary['after'])}, epoch {epochs}")
    start, reached = (one and one.get("giou") for one in (summary["before"], best))
    if start is not None and reached is not None and reached <= start:
        lines.append("note: no epoch was better than the model before training: look at overlay.png"
                     " and lisa-train preview; more pictures or a lower --lr may help")  # fmt: skip
    if patience := summary.get("stopped_by_patience"):
        without = counted(patience, "evaluation")
        lines.append(f"ended early: {without} without a better gIoU (schedule.patience)")
    lines += [f"warning: {text}" for text in summary.get("warnings", ())]
    return lines


def predict(
    model: SegmentationModel,
    samples: list[Sample],
    tokenizer: ConversationTokenizer,
    accelerator: Accelerator,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Teacher-forced mask logits [H, W] of each item, at its picture's own size.

    One after the other: those of a batch, with several questions a picture, take gigabytes.
    """
    batch = collate(samples, tokenizer).to(accelerator.device)
    # Resized on the host, so that large pictures take no memory of the card.
    low = model.predict(batch).cpu()
    asked = [one for sample in samples for one in sample.truths.items()]
    for (name, truth), logits in zip(asked, low, strict=True):
        yield name, model.frame.to_original(logits[None], *truth.shape)[0]


def evaluate_together(
    model: SegmentationModel,
    samples: SampleSet,
    tokenizer: ConversationTokenizer,
    accelerator: Accelerator,
    reporter: Reporter,
) -> MaskScores:
    """Scores of all samples; each process evaluates its share of them."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    share = list(range(rank, len(samples), processes))
    part = reporter.of_one_of(processes)
    scores = evaluate(model, samples, share, tokenizer, accelerator, part)
    if processes == 1:
        return scores
    from accelerate.utils import gather_object

    return MaskScores.from_rows(gather_object(scores.rows()))


def evaluate(
    model: SegmentationModel,
    samples: SampleSet,
    places: list[int],
    tokenizer: ConversationTokenizer,
    accelerator: Accelerator,
    reporter: Reporter,
) -> MaskScores:
    """Scores of the samples at `places`, as LISA's published evaluation has them."""
    model.eval()
    scores = MaskScores()
    size = samples.plan.micro_batch  # so that evaluating never takes more memory than training
    for start in range(0, len(places), size):
        reporter.progress("evaluating", start, len(places))
        chunk = [samples[place] for place in places[start : start + size]]
        truths = {name: one for sample in chunk for name, one in sample.truths.items()}
        for name, logits in predict(model, chunk, tokenizer, accelerator):
            scores.add(name, logits.numpy() > 0, truths[name])
    reporter.progress("evaluating", len(places), len(places))
    return scores
