"""The largest sample that a training step can meet."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import NamedTuple

from profiles.plan import Plan


class WorstSample(NamedTuple):
    """The largest sizes that occur in a data set, each by itself."""

    text_tokens: int
    masks: int
    answer_tokens: int
    image_tokens: int


def worst_sample(plan: Plan, folder: Path) -> WorstSample:
    """The largest sizes in training or evaluation on a folder, over all samples.

    Raises DataError.
    """
    from profiles.skipping import announced
    from trainer.data.broken import SkippedEntries
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.mixture import read_training
    from trainer.data.samples import MicroBatches, SampleSet
    from trainer.ignored import IGNORE_LABEL
    from trainer.model.build import some_tokenizer

    tokenizer = some_tokenizer(plan)
    leave = SkippedEntries(announced())
    train = SampleSet(read_training(folder, plan, leave), plan, tokenizer, {}, training=True)
    items = read_split(folder, "val", plan.max_val_samples, leave)
    val = SampleSet(items, plan, tokenizer, {}, training=False)
    text = masks = answers = image = 0
    rows = chain(
        map(train.encoded, MicroBatches(train, plan).visits()), map(val.encoded, range(len(val)))
    )
    for seen in rows:
        text = max(text, seen.text_tokens)
        masks = max(masks, seen.input_ids.count(tokenizer.seg_id))
        image = max(image, seen.image_tokens)
        answers = max(answers, len(seen.labels) - seen.labels.count(IGNORE_LABEL))
    return WorstSample(text, masks, answers, image)
