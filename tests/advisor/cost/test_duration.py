"""How long a training takes: parts, range, counts, and what fits into a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor.cli.main import app
from advisor.cost.duration import (
    REASON_SEG,
    Duration,
    Timed,
    assumed_size,
    duration_of,
    questions_a_row,
    within,
)
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.forecast import Forecast, Tier, TierName
from advisor.memory.speed import encoder_seconds, factors, seconds_of
from advisor.preflight import advise
from advisor.report.cost_text import _price, cost_lines
from profiles.gpus import find_gpu
from profiles.measurement import DataCounts
from profiles.plan import Plan
from profiles.text import time_text

CARD = find_gpu("RTX 3090")
COUNTS = DataCounts(train_pictures=100, val_pictures=20, epoch_questions=300, val_questions=60,
                    row_tokens=700.0)  # fmt: skip


def plan(**settings: Any) -> Plan:
    usual = {"model": "7b", "device": "cuda", "effective_batch": 20, "micro_batch": 4,
             "checkpointed_layers": "all"}  # fmt: skip
    return Plan.parse(usual | settings)


def parts(found: Duration) -> float:
    return (found.start_seconds + found.features_seconds + found.training_seconds
            + found.evaluation_seconds)  # fmt: skip


def test_much_evaluation_is_named_with_the_way_out() -> None:
    """With as many epochs in a given time as fit, and what would let more of them fit."""
    advice = advise(Machine(), "7b", (), Target(card=CARD))
    whole, less = advice.duration, advice.duration and advice.duration.sparing
    assert whole is not None and less is not None and whole.evaluation_seconds > whole.seconds / 5
    assert less.data is not None and less.data.val_pictures == 50 and less.seconds < whole.seconds
    hours = (whole.seconds - whole.epoch_seconds) / 3600
    timed = advice.model_copy(update={"duration": within(whole, hours, None)})
    text = " ".join(body for _, body in cost_lines(timed))
    assert f"{time_text(less.seconds)} with max_val_samples=50, a rougher score" in text
    assert "min: 9 epochs (1" in text and "with max_val_samples=50; --why says" in text
    short = advice.model_copy(update={"duration": within(whole, 0.02, None)})
    assert "min: no epoch, as the first" in " ".join(body for _, body in cost_lines(short))
    few = advise(Machine(), "7b", ["max_val_samples=50"], Target(card=CARD)).duration
    assert few is not None and few.sparing is None and few.seconds == less.seconds


def test_a_size_without_a_folder() -> None:
    asked = ["--gpu", "RTX 3090", "--pictures", "40", "--questions", "80", "--epochs", "3"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    told = json.loads(done.stdout)["duration"]
    assert told["epochs"] == 3 and told["data"]["train_pictures"] == 36
    assert (told["data"]["val_pictures"], told["questions"]) == (4, 72)
    assert "36 pictures to train on may be too few" in CliRunner().invoke(app, asked).stdout
    for wrong, said in ((["--questions", "9"], "give --pictures N too"),
                        (["--pictures", "9", "--questions", "3"], "got 3; allowed: 9 or more"),
                        (["--pictures", "9", "--data-dir", "."], "one of the two")):  # fmt: skip
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2 and said in done.stderr, wrong


@pytest.mark.parametrize("model", ["7b", "qwen3-vl-4b"])
def test_the_whole_is_its_parts_and_lies_in_its_range(model: str) -> None:
    found = duration_of(plan(model=model), CARD)
    assert found.seconds == pytest.approx(parts(found))
    assert found.low_seconds < found.seconds < found.high_seconds
    assert (found.epochs, found.pictures, found.counted) == (10, 239, False)
    timed = duration_of(plan(model=model, micro_batch=20), find_gpu("H100 SXM"))
    assert found.seconds > 1.5 * timed.seconds and "wide" in found.basis != timed.basis


def test_the_parts_are_counted_from_the_plan_and_the_data() -> None:
    """Of 300 questions about 100 pictures, 20 a step: 15 steps; 5 forward passes each."""
    asked = plan(workers=4)
    found = duration_of(asked, CARD, COUNTS)
    text = 700 - asked.profile.most_image_tokens
    step = factors().loop * 5 * seconds_of(asked, text, CARD)
    assert found.training_seconds == pytest.approx(10 * (15 * step + factors().workers_seconds))
    entry = factors().entry_seconds
    each = sum(encoder_seconds(f, asked, CARD) + entry for f in asked.profile.encoders.values())
    assert found.features_seconds == pytest.approx(120 * each)
    assert found.counted and found.questions == 300
    alone = duration_of(plan(workers=0), CARD, COUNTS)
    assert alone.training_seconds > found.training_seconds - 10 * factors().workers_seconds


def test_a_trial_of_the_plan_says_how_long_its_steps_take() -> None:
    """Three times as slow as forecast, on samples of another length: so is each step, no more."""
    asked = plan(workers=4, schedule={"epochs": 1})
    forecast = asked.accumulation * seconds_of(asked, 512, CARD)
    said, same, slow = (
        duration_of(asked, CARD, COUNTS, trial)
        for trial in (None, *(Timed(asked, 512, n * forecast) for n in (1, 3)))
    )
    # A trial's steps follow one another, those behind the forecast were timed on a rested card.
    rested = factors().trial_loop / factors().loop
    assert same.step_seconds == pytest.approx(rested * said.step_seconds)
    assert same.low_seconds > said.low_seconds and same.high_seconds < said.high_seconds
    assert slow.step_seconds == pytest.approx(3 * same.step_seconds)
    waiting = factors().workers_seconds
    assert slow.training_seconds - waiting == pytest.approx(3 * (same.training_seconds - waiting))
    assert same.evaluation_seconds < slow.evaluation_seconds < 3 * same.evaluation_seconds
    assert slow.features_seconds == said.features_seconds
    assert (
        "trial" in slow.basis and not duration_of(asked, None, COUNTS, Timed(asked, 9, 1)).stand_in
    )


def test_less_is_less() -> None:
    base = duration_of(plan(), CARD, COUNTS)
    none = duration_of(plan(cached_encoders=[]), CARD, COUNTS)
    assert none.features_seconds == none.picture_seconds == 0
    assert none.training_seconds > base.training_seconds
    one = duration_of(plan(schedule={"epochs": 1}), CARD, COUNTS)
    assert one.training_seconds == pytest.approx(base.training_seconds / 10)
    assert one.evaluation_seconds > base.evaluation_seconds / 10, "one of them is before training"
    short = duration_of(plan(), CARD, COUNTS.model_copy(update={"row_tokens": 620.0}))
    assert short.training_seconds < base.training_seconds
    assert duration_of(plan(compile=True), CARD).start_seconds > base.start_seconds


def test_rows_share_a_picture_among_as_many_questions_as_there_are() -> None:
    """ReasonSeg's pictures have one each, whatever the plan allows."""
    several = plan(questions_per_picture=3, micro_batch=7)
    assert questions_a_row(several, REASON_SEG) == 1 == questions_a_row(plan(), COUNTS)
    assert questions_a_row(several, COUNTS) == 3
    shared, each = (duration_of(several, CARD, COUNTS.model_copy(update=update))
                    for update in ({}, {"train_pictures": 300}))  # fmt: skip
    assert shared.training_seconds < 0.6 * each.training_seconds


def test_a_time_and_a_price() -> None:
    found = duration_of(plan(), CARD)
    asked = within(found, 8, 0.4)
    assert asked.price == pytest.approx(0.4 * found.seconds / 3600, abs=0.006)
    epochs = asked.epochs_within
    assert epochs is not None and epochs > 10
    fits, over = (duration_of(plan(schedule={"epochs": n}), CARD).seconds
                  for n in (epochs, epochs + 1))  # fmt: skip
    assert fits <= 8 * 3600 < over
    assert within(found, 0.001, None).epochs_within == 0
    few = within(found, found.seconds / 7200, 0.4)
    first, seconds = few.epochs_within, found.seconds - found.epochs * found.epoch_seconds
    assert first is not None and few.price is not None and 0 < first < 10
    cost = 0.4 * (seconds + first * found.epoch_seconds) / 3600
    told = _price(few, few.price)
    assert float(told.split()[3]) == pytest.approx(cost, abs=0.01), "of those that fit"
    assert f"10 epochs cost {few.price:.2f} (" in told and "10 epochs" not in told.split(",")[0]
    assert within(found, None, None) == found


@pytest.mark.parametrize(("seconds", "text"), [
    (4.6, "5 s"), (89, "89 s"), (91, "2 min"), (1380, "23 min"), (5500, "1.5 h"), (1.7e5, "47 h"),
    (3e5, "3.5 days"), (1.4e7, "160 days"),
])  # fmt: skip
def test_times_in_words(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_fast_cards_have_speeds_without_exponents() -> None:
    found = run("--gpu", "H200", "--model", "sa2va-qwen3-vl-2b", "--why").stdout
    assert "0 /s  forecast" in found and "e+" not in found


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="lisa-advise")


def test_the_advice_says_it_and_json_has_it() -> None:
    asked = "--gpu", "RTX 3090", "--model", "7b", "--hours", "8", "--price", "0.4"
    first, text = (" ".join(run(*asked, *more).stdout.split()) for more in ((), ("--why",)))
    assert "10 epochs of 239 pictures" in first and "in 8 h: 17" in first
    assert "10 epochs of 239 pictures (ReasonSeg's): about" in text
    assert "in 8 h: 17" in text
    assert "; 10 epochs cost 0." in text and "at 0.4 an hour" in text
    assert "sam and clip: 3.1 MiB a picture in" in text and "at a peak of 2.65 GiB" in text
    found = json.loads(run("--vram", "8GiB", "--model", "qwen3-vl-4b", "--json").stdout)
    assert found["duration"]["stand_in"] and found["duration"]["card"] == "RTX 3060 (12 GB)"
    assert found["disk"]["picture_bytes"] == 29_360_128


@pytest.mark.parametrize("arguments", [("--hours", "0"), ("--hours", "-3"), ("--price", "nan"),
                                       ("--hours", "inf"), ("--price", "cheap")])  # fmt: skip
def test_what_is_no_time_or_price_is_bad_usage(arguments: tuple[str, str]) -> None:
    found = run("--gpu", "RTX 3090", *arguments)
    assert found.exit_code == 2 and arguments[0] in found.stderr and not found.stdout


def test_a_time_that_is_not_known_is_said_to_be() -> None:
    found = run("--model", "tiny", "--hours", "2")
    assert found.exit_code == 0 and "is not known" in found.stderr


def test_the_datas_own_counts_are_taken_and_uncounted_data_has_no_time(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    names: tuple[TierName, ...] = "tensors", "pool", "process", "host"
    tiers = tuple(Tier(name=name, bytes=2**30, source="made up") for name in names)

    def live(asked: Plan, text: int | None) -> Forecast:
        return Forecast(plan=asked, verdict="FITS", compute_capability=(8, 6), text_tokens=100,
                        masks=1, data=COUNTS if text is None else None,
                        tiers=tiers)  # fmt: skip

    folder = tmp_path_factory.mktemp("data")
    target = Target(card=CARD)
    found = advise(Machine(), "7b", (), target, data=folder, live=live)
    assert found.duration is not None and found.duration.counted
    assert (found.duration.pictures, found.duration.questions) == (100, 300)
    assert "10 epochs of 100 pictures and 300 questions: about" in dict(cost_lines(found))["time"]
    blind = advise(Machine(), "7b", (), target, data=folder)
    assert blind.plan is not None and blind.duration is None and blind.disk is None


def test_without_data_its_size_is_reasonsegs_or_of_its_first_samples():
    assert assumed_size(plan()) is REASON_SEG
    few = assumed_size(plan().override(["max_train_samples=20", "max_val_samples=300"]))
    assert few is not None
    assert (few.train_pictures, few.epoch_questions, few.val_pictures) == (20, 20, 200)
    # How many pictures a mixture draws from cannot be known.
    assert assumed_size(plan().override(["mixture.sem_seg=9"])) is None
