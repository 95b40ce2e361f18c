"""How long a whole training takes: caches, steps, evaluations; by a step's roofline.

`advisor.memory.speed` gives the step's seconds. What a run takes beside its steps was measured in a
few runs (`benchmarks/speed.py`). The time has a range, a wide one for cards that were never timed.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from pydantic import Field

from advisor.memory.speed import (
    TYPICAL,
    USUAL,
    Pace,
    encoder_seconds,
    factors,
    forward_seconds,
    paces,
    seconds_of,
)
from profiles.batches import full_rows, passes
from profiles.exchange import step_exchange_seconds
from profiles.gpus import GpuProfile, gpus
from profiles.measurement import DataCounts
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.settings import PREFIX_TOKENS

# ReasonSeg as published (Lai et al. 2023, arXiv:2308.00692): its training and validation splits.
REASON_SEG = DataCounts(train_pictures=239, val_pictures=200, epoch_questions=239,
                        val_questions=200)  # fmt: skip
QUESTION_TOKENS = 60  # of a question and its answer: what benchmarks/lean.py takes
LENGTHS = 4  # for which layers are compiled, about: rows are padded to multiples of 32 tokens
COMPILE_SECONDS = 6  # for one of them
MUCH, FEWER = 0.2, 50  # of the time is much for evaluation; then so many pictures are offered


class Timed(NamedTuple):
    """A step of a plan in one process, as this card took it in a trial."""

    plan: Plan
    text_tokens: int
    seconds: float

    def slower(self, card: GpuProfile) -> float:
        """Its time over what is forecast for it."""
        each = seconds_of(self.plan, self.text_tokens, card)
        return self.seconds / (self.plan.accumulation * each)


class Duration(Frozen):
    """Seconds of a training, by what they are spent on, and what follows from them."""

    epochs: int
    pictures: int = Field(description="of the training split")
    questions: int = Field(description="asked in an epoch")
    counted: bool = Field(description="the data's own counts; false: ReasonSeg's as published")
    data: DataCounts | None = Field(None, description="these counts; null: of an earlier version")
    card: str
    stand_in: bool = Field(False, description="the card is not known, and taken to be as fast")
    start_seconds: float = Field(description="libraries, model, and compiling layers")
    features_seconds: float = Field(description="building all feature caches")
    training_seconds: float
    step_seconds: float = Field(description="from one update to the next")
    evaluation_seconds: float = Field(description="before training and after each epoch, and saves")
    seconds: float = Field(description="all of these")
    epoch_seconds: float = Field(description="one epoch with its evaluation and its save")
    low_seconds: float
    high_seconds: float
    picture_seconds: float = Field(description="of one picture's features, both encoders")
    basis: str = Field(description="what the figures come from, and how far they were off")
    hours: float | None = Field(None, description="the time that there is")
    epochs_within: int | None = Field(None, description="that fit into it; 0: not even one")
    price_per_hour: float | None = None
    price: float | None = Field(None, description="of all seconds")
    sparing: Duration | None = Field(
        None, description="with max_val_samples=50, where evaluation takes a fifth or more"
    )


def assumed_size(plan: Plan) -> DataCounts | None:
    """What a plan trains on where no data was named: ReasonSeg, or its first samples.

    None for a mixture, whose pictures cannot be known.
    """
    if not plan.mixture.reason_seg_alone:
        return None
    whole = REASON_SEG
    train = min(whole.train_pictures, plan.max_train_samples or whole.train_pictures)
    val = min(whole.val_pictures, plan.max_val_samples or whole.val_pictures)
    if (train, val) == (whole.train_pictures, whole.val_pictures):
        return whole
    return DataCounts(train_pictures=train, val_pictures=val, epoch_questions=train,
                      val_questions=val)  # fmt: skip


def duration_of(
    plan: Plan,
    card: GpuProfile | None,
    counts: DataCounts = REASON_SEG,
    trial: Timed | None = None,
) -> Duration:
    """How long the plan trains on a card; an unknown card is taken to be as fast as TYPICAL.

    With a `trial`, all steps are scaled by its measured time over its forecast. Raises ValueError
    if the card lacks the plan's dtype.
    """
    stand_in, card = card is None and trial is None, card or gpus()[TYPICAL]
    slower = trial and trial.slower(card)
    usual, (fast, slow) = _Parts(plan, card, counts, USUAL, slower), paces(card)
    low, high = (_Parts(plan, card, counts, pace, slower).seconds(plan.schedule.epochs)
                 for pace in (fast, slow))  # fmt: skip
    epochs = plan.schedule.epochs
    basis = factors().error + ("" if card.key in factors().timed else ", so the range is wide")
    if trial is not None:
        basis = f"steps as this card took them in a trial, {trial.seconds:.3g} s; the rest: {basis}"
    return Duration(
        epochs=epochs,
        pictures=counts.train_pictures,
        questions=counts.epoch_questions,
        counted=counts != REASON_SEG,
        data=counts,
        card=card.title,
        stand_in=stand_in,
        start_seconds=usual.start,
        features_seconds=usual.features,
        training_seconds=epochs * usual.training,
        step_seconds=usual.step,
        evaluation_seconds=usual.evaluation + epochs * usual.epoch_end,
        seconds=usual.seconds(epochs),
        epoch_seconds=usual.training + usual.epoch_end,
        low_seconds=low,
        high_seconds=high,
        picture_seconds=usual.picture,
        basis=basis,
    )


def with_sparing(
    plan: Plan, card: GpuProfile | None, counts: DataCounts, trial: Timed | None = None
) -> Duration:
    """As `duration_of`, and with fewer pictures to validate on where that takes much of the time.

    Raises ValueError as that does.
    """
    found = duration_of(plan, card, counts, trial)
    much = found.evaluation_seconds >= MUCH * found.seconds
    if plan.max_val_samples is not None or counts.val_pictures <= FEWER or not much:
        return found
    questions = round(counts.val_questions * FEWER / counts.val_pictures)
    fewer = counts.model_copy(update={"val_pictures": FEWER, "val_questions": questions})
    return found.model_copy(update={"sparing": duration_of(plan, card, fewer, trial)})


def within(duration: Duration, hours: float | None, price_per_hour: float | None) -> Duration:
    """The duration with the epochs that fit into `hours`, and with its cost."""
    update: dict[str, float | None] = {"hours": hours, "price_per_hour": price_per_hour}
    if hours is not None:
        once = duration.seconds - duration.epochs * duration.epoch_seconds
        update["epochs_within"] = max(0, int((3600 * hours - once) / duration.epoch_seconds))
    if price_per_hour is not None:
        update["price"] = round(price_per_hour * duration.seconds / 3600, 2)
    less = duration.sparing and within(duration.sparing, hours, price_per_hour)
    return duration.model_copy(update={**update, "sparing": less})


class _Parts:
    """Seconds of each part of a run at one pace; the CPU's work scales with kernel launches.

    If a trial showed how much `slower` than forecast steps are, the pace leaves steps alone.
    """

    def __init__(
        self,
        plan: Plan,
        card: GpuProfile,
        counts: DataCounts,
        pace: Pace,
        slower: float | None = None,
    ) -> None:
        known, cpu = factors(), pace.launches
        own, times, loop = pace, 1.0, known.loop
        if slower is not None:
            own, times, loop = USUAL, slower, known.trial_loop
        asked = questions_a_row(plan, counts)
        text = _text_tokens(plan, counts, asked)
        compiling = LENGTHS * COMPILE_SECONDS if plan.compile else 0
        self.start = cpu * (known.start_seconds + compiling)
        encoders = [plan.profile.encoders[name] for name in plan.cached_encoders]
        entry = cpu * known.entry_seconds
        self.picture = sum(encoder_seconds(one, plan, card, pace) + entry for one in encoders)
        pictures = counts.train_pictures + counts.val_pictures
        # Each machine has a cache of its own, which its processes fill together.
        self.features = pictures * self.picture / plan.local_processes
        reading = cpu * known.sample_seconds
        rows = ceil(plan.effective_batch / asked)
        cuts = passes(rows, plan.micro_batch, plan.processes)
        step = loop * cuts * times * seconds_of(plan, text, card, own)
        step += step_exchange_seconds(plan)
        wait = reading * rows / plan.processes
        # Data workers read the next rows meanwhile; without any, the step waits.
        step = max(step, wait / plan.workers) if plan.workers else step + wait
        self.step = step
        self.training = ceil(counts.epoch_questions / plan.effective_batch) * step
        self.training += cpu * known.workers_seconds if plan.workers else 0.0
        least = full_rows(counts.val_questions, plan.questions_per_picture)
        val_rows = full_rows(max(counts.val_pictures, least), plan.processes)
        forward = times * forward_seconds(plan, text, card, own) / plan.micro_batch
        scoring = cpu * known.scoring_seconds * counts.val_questions / plan.processes
        self.evaluation = val_rows * (forward + reading) + scoring
        self.epoch_end = self.evaluation + cpu * known.save_seconds

    def seconds(self, epochs: int) -> float:
        """Of a whole run."""
        return (
            self.start + self.features + self.evaluation + epochs * (self.training + self.epoch_end)
        )


def questions_a_row(plan: Plan, counts: DataCounts) -> float:
    """Questions that rows share their picture among, on average: as many as the plan and the
    pictures have."""
    each = counts.epoch_questions / max(1, counts.train_pictures)
    return max(1.0, min(plan.questions_per_picture, each))


def _text_tokens(plan: Plan, counts: DataCounts, asked: float) -> int:
    """Text tokens of a usual row: by the data's mean length, or for usual questions.

    Every picture counts as the plan's largest, so what the data's pictures take less is subtracted.
    """
    if counts.row_tokens is not None:
        return round(counts.row_tokens) - plan.profile.most_image_tokens
    usual = PREFIX_TOKENS + QUESTION_TOKENS * asked
    return min(round(usual), plan.tokens.max_text_tokens)
