"""The largest sample that a training step can meet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from profiles.measurement import DataCounts
from profiles.plan import Plan

if TYPE_CHECKING:
    from trainer.batch import Encoded


class WorstSample(NamedTuple):
    """The largest sizes that occur in a data set, each by itself; and how much there is."""

    text_tokens: int
    masks: int
    answer_tokens: int
    image_tokens: int
    counts: DataCounts


def worst_sample(plan: Plan, folder: Path) -> WorstSample:
    """The largest sizes in training or evaluation on a folder, over all samples.

    Raises DataError.
    """
    from profiles.skipping import announced
    from trainer.data.broken import SkippedEntries
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.micro_batches import MicroBatches
    from trainer.data.mixture import read_training
    from trainer.data.samples import SampleSet, image_paths
    from trainer.ignored import IGNORE_LABEL
    from trainer.model.build import counting_tokenizer

    tokenizer = counting_tokenizer(plan)
    leave = SkippedEntries(announced())
    train = SampleSet(read_training(folder, plan, leave), plan, tokenizer, {}, training=True)
    items = read_split(folder, "val", plan.max_val_samples, leave)
    val = SampleSet(items, plan, tokenizer, {}, training=False)
    text = masks = answers = image = rows = tokens = 0
    pictures: set[Path] = set()

    def trained() -> Iterator[Encoded]:
        nonlocal rows, tokens
        for visit in MicroBatches(train, plan).visits():
            seen = train.encoded(visit)
            pictures.add(train.picture(visit.lap, visit.picture).image_path)
            rows, tokens = rows + 1, tokens + len(seen.input_ids)
            yield seen

    for seen in chain(trained(), map(val.encoded, range(len(val)))):
        text = max(text, seen.text_tokens)
        masks = max(masks, seen.input_ids.count(tokenizer.seg_id))
        image = max(image, seen.image_tokens)
        answers = max(answers, len(seen.labels) - seen.labels.count(IGNORE_LABEL))
    counts = DataCounts(
        train_pictures=len(pictures), val_pictures=len(image_paths(items)),
        epoch_questions=train.epoch_questions, val_questions=len(items),
        row_tokens=round(tokens / rows, 1) if rows else None,
    )  # fmt: skip
    return WorstSample(text, masks, answers, image, counts)
