"""The samples that a run trains on and evaluates, with their feature caches filled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from profiles.plan import Plan
from profiles.text import counted
from trainer.data.formats.reasonseg import Item
from trainer.data.micro_batches import MicroBatches
from trainer.data.mixture import MixedSets
from trainer.data.pictures import Picture
from trainer.data.samples import SampleSet, image_paths
from trainer.model.tokenizer import ConversationTokenizer
from trainer.parallel.ranks import Ranks
from trainer.phase import during
from trainer.reporter import Reporter
from trainer.run.feature_caches import prepare_caches


def sample_sets(
    plan: Plan,
    train: list[Item] | MixedSets,
    val: list[Item],
    tokenizer: ConversationTokenizer,
    cache_root: Path,
    accelerator: Accelerator,
    ranks: Ranks,
    reporter: Reporter,
) -> tuple[SampleSet, SampleSet]:
    """The samples of both splits, their feature caches filled."""
    if isinstance(train, MixedSets) or plan.questions_per_picture > 1:
        samples = SampleSet(train, plan, tokenizer, {}, training=True)
        images = image_paths(_checked(samples, plan, reporter.line), val)
    else:
        images = image_paths(train, val)
    with during("building features"):
        caches = prepare_caches(plan, images, cache_root, accelerator, reporter, ranks)
    make_set = partial(SampleSet, plan=plan, tokenizer=tokenizer, caches=caches)
    return make_set(train, training=True), make_set(val, training=False)


def _checked(samples: SampleSet, plan: Plan, report: Callable[[str], None]) -> list[Picture]:
    """Check the length of every row that the training will have; the pictures of all."""
    visits = list(MicroBatches(samples, plan).visits())
    if left_out := samples.check_lengths(visits):
        limit = plan.tokens.max_text_tokens
        report(
            f"{counted(left_out, 'question')} of {sum(visit.questions for visit in visits)} "
            f"left out: with them, rows would be longer than tokens.max_text_tokens={limit}\n"
            "    hint: allow more tokens, or a smaller questions_per_picture"
        )
    return [samples.picture(visit.lap, visit.picture) for visit in visits]
