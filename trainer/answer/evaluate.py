"""A trained model's scores on a split, with their uncertainty, and its best and worst pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from profiles.files import sweep, write_whole
from trainer.answer.questions import question_of, questions_of
from trainer.answer.scored import FILES, SCORES
from trainer.answer.segmenter import Segmenter
from trainer.data.formats.reasonseg import Item
from trainer.data.images import read_image
from trainer.data.overlays import IGNORED, PREDICTED, TRUE, Row, Tile, write_sheet
from trainer.data.polygons import IGNORE, TARGET, paint_mask
from trainer.data.samples import SampleSet
from trainer.hardware import versions
from trainer.reporter import Reporter
from trainer.run.metrics import ImageScore, MaskScores, intersection_union
from trainer.run.validation import describe, evaluate, predict

if TYPE_CHECKING:
    from trainer.run.run import Run

SHOWN = 4  # of the best, and of the worst
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evaluation:
    """Scores of every question, and the generated answers, if any."""

    items: tuple[Item, ...]
    scores: MaskScores
    answers: dict[str, str]  # by item; empty if teacher-forced

    def summary(self) -> dict[str, Any]:
        """gIoU and cIoU with 95 % intervals: of all, of short and of long questions."""
        long = {item.name for item in self.items if item.is_sentence}
        rows = self.scores.rows()
        groups = {
            "all": rows,
            "short": [row for row in rows if row["name"] not in long],
            "long": [row for row in rows if row["name"] in long],
        }
        return {name: _figures(MaskScores.from_rows(group)) for name, group in groups.items()}

    def rows(self) -> list[dict[str, Any]]:
        """One row a question, the worst first."""
        by_name = {item.name: item for item in self.items}
        found: list[dict[str, Any]] = []
        for row in self.scores.rows():
            item = by_name[str(row["name"])]
            row |= {"question": item.texts[0], "is_sentence": item.is_sentence}
            found.append(row | {"answer": self.answers.get(item.name, "")})
        return sorted(found, key=lambda row: (row["iou"], row["name"]))


def _figures(scores: MaskScores) -> dict[str, Any]:
    found = {"giou": scores.giou, "ciou": scores.ciou, "images": scores.count}
    return found | {f"{name}_95": ends for name, ends in scores.intervals().items()}


def teacher_forced(segmenter: Segmenter, items: Sequence[Item], reporter: Reporter) -> Evaluation:
    """As published: the answer "[SEG]." is given, and its mask is scored. Raises DataError."""
    samples = _samples(segmenter, items)
    scores = evaluate(
        segmenter.model, samples, list(range(len(samples))), segmenter.tokenizer,
        segmenter.accelerator, reporter,
    )  # fmt: skip
    return Evaluation(tuple(items), _in_order(scores.rows(), items), {})


def _in_order(rows: Sequence[Mapping[str, Any]], items: Sequence[Item]) -> MaskScores:
    """Scores in the order of their items, by which the intervals are drawn: pictures with several
    questions come in another."""
    by_name = {row["name"]: row for row in rows}
    return MaskScores.from_rows(by_name[item.name] for item in items)


def generated(segmenter: Segmenter, items: Sequence[Item], reporter: Reporter) -> Evaluation:
    """As in use: the model answers, and all masks of its answer are scored together.

    An answer without [SEG] is an empty mask.
    """
    asked, answers, scores = questions_of(items), {}, MaskScores()
    reporter.progress("answering", 0, len(items))
    said = segmenter.ask_all([question for _, question in asked])
    for done, ((item, _), answer) in enumerate(zip(asked, said, strict=True), 1):
        truth = paint_mask(item.polygons, *answer.mask.shape)
        answers[item.name] = answer.text
        scores.add_counts(item.name, *intersection_union(answer.mask, truth))
        reporter.progress("answering", done, len(items))
    return Evaluation(tuple(items), _in_order(scores.rows(), items), answers)


def write(found: Evaluation, segmenter: Segmenter, folder: Path, facts: dict[str, Any]) -> None:
    """Write scores.json, images.jsonl (worst first) and extremes.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, FILES)
    document = {**facts, **found.summary(), "plan": segmenter.plan.content_hash,
                "versions": versions()}  # fmt: skip
    write_whole(folder / SCORES, json.dumps(document, indent=2) + "\n")
    for name in FILES[1:]:  # should the disk be full now, none is left that is not of these scores
        (folder / name).unlink(missing_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows()]
    write_whole(folder / "images.jsonl", "".join(lines))
    _write_extremes(found, segmenter, folder / "extremes.png")


def lines(summary: dict[str, Any]) -> list[str]:
    """The summary as a user reads it."""
    return [f"{name:5}  {_line(figures)}" for name, figures in summary.items()]


def _line(figures: dict[str, Any]) -> str:
    text = describe(figures) if figures["images"] else "no question"
    for name, title in (("giou", "gIoU"), ("ciou", "cIoU")):
        if ends := figures.get(f"{name}_95"):
            value = f"{title} {figures[name]:.3f}"
            text = text.replace(value, f"{value} [{ends[0]:.3f}, {ends[1]:.3f}]")
    return text


def _write_extremes(found: Evaluation, segmenter: Segmenter, path: Path) -> None:
    """The worst and the best pictures: question, prediction, truth."""
    by_name = {item.name: item for item in found.items}
    order = [by_name[row["name"]] for row in found.rows()]
    chosen = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
    mask_of: Callable[[Item], Mask] = (
        (lambda item: segmenter.ask(question_of(item)).mask)
        if found.answers
        else (lambda item: _forced_mask(segmenter, item))
    )
    write_sheet([_row(item, mask_of(item)) for item in chosen], path)


def _forced_mask(segmenter: Segmenter, item: Item) -> Mask:
    sample = _samples(segmenter, [item])[0]
    ((_, logits),) = predict(segmenter.model, [sample], segmenter.tokenizer, segmenter.accelerator)
    return logits.numpy() > 0


def _samples(segmenter: Segmenter, items: Sequence[Item]) -> SampleSet:
    plan, tokenizer, caches = segmenter.plan, segmenter.tokenizer, segmenter.caches
    return SampleSet(items, plan, tokenizer, caches, training=False)


def _row(item: Item, mask: Mask) -> Row:
    image = read_image(item.image_path)
    truth = paint_mask(item.polygons, *image.shape[:2])
    iou = ImageScore(item.name, *intersection_union(mask, truth)).iou
    predicted = Tile(f"prediction, IoU {iou:.2f}", image, (mask,), (PREDICTED,))
    true = Tile("truth", image, (truth == TARGET, truth == IGNORE), (TRUE, IGNORED))
    return Row(item.texts[0], (Tile("", image), predicted, true))


def run_sheet(run: Run, path: Path, count: int) -> Path:
    """Questions, predictions and truths of a run's first validation samples, as one PNG."""
    run.model.eval()
    step = max(1, len(run.val_set) // count)
    by_name = {item.name: item for item in run.val}
    rows = []
    for place in list(range(0, len(run.val_set), step))[:count]:
        asked = predict(run.model, [run.val_set[place]], run.tokenizer, run.accelerator)
        name, logits = next(asked)
        rows.append(_row(by_name[name], logits.numpy() > 0))
    return write_sheet(rows, path)
