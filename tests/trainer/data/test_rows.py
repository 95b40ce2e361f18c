"""Rows of several questions: what is drawn, how steps are filled, what evaluation asks."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.test_step import Odd
from trainer.batch import sharing_prefix
from trainer.data.formats.reasonseg import ReasoningPicture, by_picture, read_split
from trainer.data.micro_batches import MicroBatches
from trainer.data.samples import SampleSet, Visit
from trainer.frame import Frame
from trainer.model.build import build, read_tokenizer
from trainer.model.tokenizer import TooLong
from trainer.rehearse.worst_sample import worst_sample
from trainer.reporter import Reporter
from trainer.run.run import Run
from trainer.run.started import Keeping
from trainer.run.validation import evaluate, predict

QUIET = Reporter(lambda text: None, lambda what, done, total: None)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ReasonSeg as an import leaves it: the picture of several items is one file with links."""
    root = tmp_path_factory.mktemp("linked")
    for split in ("train", "val"):
        folder = root / "ReasonSeg" / split
        folder.mkdir(parents=True)
        items = read_split(PHOTOS, "train")[:3]
        for number, item in enumerate(items):
            for copy in range(number + 1):
                place = folder / f"{number}-{copy}"
                picture = place.with_suffix(item.image_path.suffix)
                if copy == 1:  # an import links them where it can, and copies them elsewhere
                    os.link(folder / f"{number}-0{picture.suffix}", picture)
                else:
                    shutil.copy(item.image_path, picture)
                fields = json.loads(item.json_path.read_text())
                fields["text"] = [f"thing {number} {copy}", f"other words {number} {copy}"]
                fields["is_sentence"] = False
                place.with_suffix(".json").write_text(json.dumps(fields))
    return root


CACHED = ["mask", "vision"]


def shared_plan(count: int, **settings: Any) -> Plan:
    return tiny_plan(**{"questions_per_picture": count, "effective_batch": 8} | settings)


def samples_of(plan: Plan, root: Path, training: bool = True) -> SampleSet:
    items = read_split(root, "train" if training else "val")
    return SampleSet(items, plan, read_tokenizer(plan), {}, training=training)


# ------------------------------------------------------------------------------------- pictures


def test_a_picture_is_its_file_however_it_is_named(linked: Path) -> None:
    pictures = by_picture(read_split(linked, "train"))
    assert [[item.name for item in one.items] for one in pictures] == [
        ["0-0"], ["1-0", "1-1"], ["2-0", "2-1", "2-2"]
    ]  # fmt: skip
    assert [one.questions for one in pictures] == [2, 4, 6]


def test_a_visit_draws_without_repeats_and_every_item_first(linked: Path) -> None:
    picture = by_picture(read_split(linked, "train"))[2]
    for seed in range(20):
        for most in range(1, 8):
            drawn = picture.draw(np.random.default_rng(seed), most)
            assert all(len(conversation) == 1 for conversation in drawn)
            said = [one.turn.question.split(" in this image")[0] for (one,) in drawn]
            assert len(said) == len(set(said)) == min(most, 6)
            paints = Counter(id(one.paint) for (one,) in drawn)
            assert max(paints.values()) - min(paints.values()) <= 1


def test_words_that_an_item_has_twice_are_asked_once() -> None:
    item = next(item for item in read_split(PHOTOS, "train") if item.explanations)
    again = replace(item, texts=item.texts * 2, explanations=item.explanations * 2)
    once, twice = ReasoningPicture(item), ReasoningPicture(again)
    assert twice.questions == once.questions
    for one, other in zip(
        *(p.draw(np.random.default_rng(3), 9) for p in (once, twice)), strict=True
    ):
        assert one[0].turn == other[0].turn


def test_explanations_are_drawn_as_often_as_alone() -> None:
    item = next(item for item in read_split(PHOTOS, "train") if item.explanations)
    picture = ReasoningPicture(item)
    firsts = [
        picture.draw(np.random.default_rng(seed), 1)[0][0].turn.answer or "" for seed in range(300)
    ]
    alone = [
        picture.draw_one(np.random.default_rng(seed))[0].turn.answer or "" for seed in range(300)
    ]
    shares = [sum(len(text) > 60 for text in texts) / 300 for texts in (firsts, alone)]
    assert shares[0] == pytest.approx(shares[1], abs=0.1) and shares[0] == pytest.approx(
        1 / 3, abs=0.1
    )


# ---------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("questions", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("given", [lambda n: 9, lambda n: 1, lambda n: 1 + n % 4])
def test_every_step_asks_as_many_questions(questions: int, given: Callable[[int], int]) -> None:
    plan = shared_plan(questions, effective_batch=8, micro_batch=1, schedule={"epochs": 6})
    samples = Odd(40, lambda n: min(questions, given(n)))
    sampler = MicroBatches(samples, plan)
    steps = [rows for epoch in range(6) for rows in sampler.of_epoch(epoch)]
    assert len(steps) == 6 * sampler.steps == 6 * 5  # as many as with any other K
    assert {sum(visit.questions for visit in rows) for rows in steps} == {8}


def test_epochs_follow_on_each_other_pass_after_pass() -> None:
    """Each pass has every picture once, in an order of its own, wherever epochs begin."""
    plan = shared_plan(4, effective_batch=8, micro_batch=1)
    sampler = MicroBatches(Odd(40, lambda n: 4), plan)
    rows = [visit for epoch in range(12) for step in sampler.of_epoch(epoch) for visit in step]
    orders = [[visit.picture for visit in rows if visit.lap == lap] for lap in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    # Pictures of which an epoch sees each several times are drawn about anew.
    few = Odd(10, lambda n: 4)
    few.epoch_questions = 120
    seen = [visit[:2] for step in MicroBatches(few, plan).of_epoch(1) for visit in step]
    assert len(seen) == len(set(seen)) == 30


@pytest.mark.parametrize("questions", [1, 3])
def test_rows_of_a_step_depend_on_no_machine(questions: int) -> None:
    def steps(micro: int, processes: int, skip: int = 0) -> list[list[Visit]]:
        plan = Plan.parse(shared_plan(questions, effective_batch=12).model_dump(mode="json") | {
            "micro_batch": micro, "processes": processes, "accumulation": None})  # fmt: skip
        found: list[list[Visit]] = []
        ranks = [
            MicroBatches(Odd(31, lambda n: 1 + n % questions), plan, r) for r in range(processes)
        ]
        for sampler in ranks:
            sampler.skip = skip
        micros = [map(sampler.rows, sampler) for sampler in ranks]
        for rows in list(ranks[0].of_epoch(0))[skip:]:
            parts = [sampler.count(len(rows)) for sampler in ranks]
            assert min(parts) >= 1
            taken = [[next(one) for _ in range(n)] for one, n in zip(micros, parts, strict=True)]
            assert all(len(part) <= micro for rank in taken for part in rank)
            found.append(sorted(chain.from_iterable(chain.from_iterable(taken))))
        assert all(next(one, None) is None for one in micros)
        return found

    whole = steps(12, 1)
    assert whole == steps(3, 1) == steps(1, 1) == steps(2, 2) == steps(1, 4)
    assert whole[1:] == steps(2, 2, skip=1)


def test_a_row_too_long_loses_its_last_questions_and_they_are_counted(linked: Path) -> None:
    plan = shared_plan(3)
    samples = samples_of(plan, linked)
    visits = list(MicroBatches(samples, plan).visits())
    assert samples.check_lengths(visits) == 0
    longest = max(samples.encoded(visit).text_tokens for visit in visits)
    short = shared_plan(3, tokens={"max_text_tokens": longest - 1})
    fewer = samples_of(short, linked)
    left_out = fewer.check_lengths(visits)
    kept = sum(fewer.encoded(visit).questions for visit in visits)
    assert left_out > 0 and kept + left_out == sum(visit.questions for visit in visits)
    for visit in visits:
        sample = fewer[visit]
        assert 1 <= sample.encoded.questions <= visit.questions
        assert sample.encoded.text_tokens < longest
        assert len(sample.targets) == sample.encoded.input_ids.count(samples.tokenizer.seg_id)
        whole = samples.encoded(visit)
        first = whole.starts[1] if len(whole.starts) > 1 else len(whole.input_ids)
        assert fewer.encoded(visit).input_ids[: first - 1] == whole.input_ids[: first - 1]
    tight = shared_plan(3, tokens={"max_text_tokens": 32})
    with pytest.raises(TooLong, match="allows 32"):
        samples_of(tight, linked).check_lengths(visits)


def test_the_worst_row_is_known(linked: Path) -> None:
    alone, three = (worst_sample(shared_plan(count), linked) for count in (1, 3))
    assert (alone.masks, three.masks) == (1, 3)
    assert alone.text_tokens < three.text_tokens and alone.answer_tokens < three.answer_tokens


# ----------------------------------------------------------------------------------- evaluation


def test_evaluation_asks_all_questions_of_a_picture_in_one_row(linked: Path) -> None:
    """The masks and scores are those of one by one."""
    found: dict[int, Any] = {}
    for count in (1, 3):
        plan = shared_plan(count)
        samples = samples_of(plan, linked, training=False)
        assert len(samples) == (6 if count == 1 else 3)
        model = build(plan, samples.tokenizer, torch.device("cpu"))
        places = list(range(len(samples)))
        scores = evaluate(model, samples, places, samples.tokenizer, Accelerator(cpu=True), QUIET)
        found[count] = {row["name"]: row for row in scores.rows()}
    assert found[1].keys() == found[3].keys() and len(found[1]) == 6
    # One mask of a picture's own size at a time: the host has no room for all of a batch.
    real = Frame.to_original
    with patch.object(Frame, "to_original", autospec=True, side_effect=real) as resized:
        next(predict(model, [samples[2]], samples.tokenizer, Accelerator(cpu=True)))
    assert len(samples[2].truths) == 3 and resized.call_count == 1
    for name, row in found[1].items():
        for key in ("intersection", "union", "iou"):
            assert found[3][name][key] == pytest.approx(row[key], rel=1e-3), (name, key)


def test_rows_of_an_evaluation_are_as_long_as_the_plan_allows(linked: Path) -> None:
    plan = shared_plan(2)
    samples = samples_of(plan, linked, training=False)
    assert [samples.encoded(n).questions for n in range(len(samples))] == [1, 2, 2, 1]
    pair = max(samples.encoded(n).text_tokens for n in range(len(samples)))
    tight = samples_of(shared_plan(2, tokens={"max_text_tokens": pair - 1}), linked, training=False)
    assert max(tight.encoded(n).text_tokens for n in range(len(tight))) < pair
    names = [name for n in range(len(tight)) for name in tight[n].truths]
    assert sorted(names) == ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2"]


# ----------------------------------------------------------------------------------------- runs


def test_a_run_asks_the_same_questions_however_it_is_cut(
    linked: Path, cache: Path, tmp_path: Path
) -> None:
    """Losses of the first step: micro-batch 1 and 4 of the same rows."""
    losses = []
    for micro in (1, 4):
        schedule = {"epochs": 1, "learning_rate": 1e-3}
        plan = shared_plan(3, micro_batch=micro, schedule=schedule, cached_encoders=CACHED)
        folder = tmp_path / str(micro)
        folder.mkdir()
        items = read_split(linked, "train")
        run = Run(plan, items, items[:2], folder, cache, QUIET)
        run.train()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 1


def test_a_resumed_run_asks_the_rest_of_the_questions(
    linked: Path, cache: Path, tmp_path: Path
) -> None:
    """Bit for bit, from the middle of an epoch, and with data workers the second time."""
    items = read_split(linked, "train")
    plan = shared_plan(
        3, effective_batch=4, micro_batch=1, schedule={"epochs": 3}, cached_encoders=CACHED
    )
    keeping = Keeping(steps=1, checkpoints=99)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    Run(plan, items, items[:1], whole, cache, QUIET, keeping).train()
    saved = {
        json.loads((folder / "facts.json").read_text())["step"]: folder
        for folder in whole.glob("last*")
    }
    middle = tmp_path / "middle"
    shutil.copytree(saved[3], middle)
    shutil.copytree(whole, broken)
    plan = plan.override(["workers=2"])
    Run(plan, items, items[:1], broken, cache, QUIET, keeping).train(middle)
    ends = [(folder / "last" / "trained.safetensors").read_bytes() for folder in (whole, broken)]
    assert ends[0] == ends[1] != (middle / "trained.safetensors").read_bytes()


def test_sharing_needs_no_second_text() -> None:
    """A picture with one question gives a row as ever, whatever the plan asks for."""
    items = read_split(PHOTOS, "train", 2)
    plan = shared_plan(8)
    samples = SampleSet(items, plan, read_tokenizer(plan), {}, training=True)
    counts = [len(item.texts) + len(item.explanations) for item in items]
    for number, count in enumerate(counts):
        row = samples.encoded((0, number))
        assert row.questions == min(8, count)
        if count == 1:
            assert row == sharing_prefix([row]) and not row.starts
