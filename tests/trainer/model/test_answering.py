"""Steps of one shape: what is masked stays unseen, and a recorded step is one that moves on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.plan import Plan
from tests import small_qwen
from tests.conftest import PHOTOS, tiny_plan
from trainer.answer.question import Answer, Question, Stopped
from trainer.answer.segmenter import USUAL, Group, Segmenter, _group, _groups, longest_row
from trainer.answer.trained_model import Trained
from trainer.batch import Encoded, sharing_prefix
from trainer.data.formats.reasonseg import read_split
from trainer.model.answering import Answering, Said, not_stopped
from trainer.model.build import counting_tokenizer
from trainer.model.layers.replayed import Replayed
from trainer.prompts import ANSWERS, Turn

PICTURES = [item.image_path for item in read_split(PHOTOS, "val")][:2]
TEXTS = ("Which of these could somebody drink from?", "What is it?",
         "Where can one sit, in this picture, to read a long book?", "What is it?")  # fmt: skip


@pytest.fixture(autouse=True)
def small_one_is_known() -> Iterator[None]:
    small_qwen.register(small_qwen.small())
    yield
    small_qwen.forget()


def made(family: str, dtype: str = "fp32") -> Segmenter:
    """Of a small model, encoders loaded, with adapters that do something."""
    settings: dict[str, Any] = {"cached_encoders": [], "dtype": dtype}
    if family == "qwen":
        settings |= {"model": "small-qwen", "weights": "random", "quantization": "nf4",
                     "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}  # fmt: skip
    plan = tiny_plan(**settings).override(["tokens.max_new_tokens=6"])
    segmenter = Segmenter(Trained(plan, None), [], Path())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in segmenter.model.named_parameters():
            if ".lora_B." in name:
                parameter += 0.02 * torch.randn_like(parameter)
    return segmenter


@pytest.fixture(params=["llava", "qwen"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return made(request.param)


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-5), ("bf16", 0.02)])
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_steps_say_what_reading_all_again_says(family: str, dtype: str, error: float) -> None:
    segmenter = made(family, dtype)
    question = Question(PICTURES[0], TEXTS[0])
    batch = segmenter._batch(PICTURES[0], *segmenter._rows([question]))
    model = segmenter.model
    model.cached = frozenset(batch.inputs)
    said = islice(Answering(model, 400).greedy(batch, [0]), 6)
    tokens, states = map(torch.cat, zip(*said, strict=True))
    ids = torch.cat([batch.input_ids, tokens[None, :-1]], 1)
    with torch.no_grad():
        again = model.hidden_states(replace(batch, input_ids=ids))[0, -6:]
    assert (states - again).norm() < error * again.norm()


def states_of(segmenter: Segmenter, room: Answering, steps: int = 6) -> Tensor:
    """The states of an answer's tokens."""
    question = Question(PICTURES[0], TEXTS[0])
    batch = segmenter._batch(PICTURES[0], *segmenter._rows([question]))
    segmenter.model.cached = frozenset(batch.inputs)
    return torch.cat([state for _, state in islice(room.greedy(batch, [0]), steps)])


def test_what_is_in_no_ones_slots_does_not_matter(segmenter: Segmenter) -> None:
    """Not what an earlier row left there, not even if it is no number."""
    room = Answering(segmenter.model, 400)
    before = states_of(segmenter, room)
    for block in room.past.blocks.values():
        block.fill_(torch.nan)
    room.past.forget(0)
    assert torch.equal(states_of(segmenter, room), before)


class Recorded(TorchDispatchMode):
    """A CUDA graph's stand-in: operators are called again, their results put where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = tree_leaves(func(*args, **kwargs))
            for place, value in zip(tree_leaves(result), again, strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def test_a_recorded_step_is_the_plain_one_at_each_place(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the step at which it was recorded is fixed in it, in another row either."""

    @contextmanager
    def record(graph: Recorded, **_: Any) -> Iterator[None]:
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", record)
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    recorded, plain = Answering(segmenter.model, 400), Answering(segmenter.model, 400)
    recorded.replayed = Replayed(True)
    for _ in range(2):
        torch.testing.assert_close(
            states_of(segmenter, recorded), states_of(segmenter, plain), atol=1e-5, rtol=1e-5
        )
        for room in (recorded, plain):
            room.past.forget(3)
    assert isinstance(recorded.replayed.graph, Recorded) and recorded.replayed.graph.calls


def limited(segmenter: Segmenter, new_tokens: int) -> None:
    limits = segmenter.plan.tokens.model_copy(update={"max_new_tokens": new_tokens})
    segmenter.plan = segmenter.plan.model_copy(update={"tokens": limits})


def said_alone(segmenter: Segmenter, rows: list[Encoded]) -> list[Said]:
    found = []
    for row in rows:
        segmenter.read = []
        found.extend(segmenter._said(PICTURES[0], _group([row], 0, segmenter.plan.tokens)))
    return found


def test_questions_asked_together_are_answered_as_alone(segmenter: Segmenter) -> None:
    """In one row or in several, and where there is not room for so many long answers."""
    model, passed = segmenter.model, []
    model.masks_of = lambda prompts, image: prompts  # type: ignore[method-assign]
    asked = [Question(PICTURES[0], text) for text in TEXTS]
    rows = segmenter._rows(asked)
    model.seg_token_id = said_alone(segmenter, rows[:1])[0].tokens[1]
    alone, read = said_alone(segmenter, rows), model.read
    assert not torch.allclose(alone[0].masks[0], alone[1].masks[0])
    model.read = lambda *given: passed.append(0) or read(*given)  # type: ignore
    limits = segmenter.plan.tokens
    for most, count in ((512, 1), (sharing_prefix(rows[:2]).text_tokens + 2 * USUAL, 3)):
        few = limits.model_copy(update={"max_text_tokens": most})
        groups = list(_groups(asked, rows, few))
        together = [said for group in groups for said in segmenter._said(PICTURES[0], group)]
        assert [said.tokens for said in together] == [said.tokens for said in alone]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.masks, other.masks, atol=1e-4, rtol=1e-4)
        assert len(groups) == len(passed) == count
        passed.clear()
    limited(segmenter, 30)
    (group,) = _groups(asked, rows, segmenter.plan.tokens)
    found = segmenter._said(PICTURES[0], group)
    pairs = zip(found, rows, strict=True)
    together = [segmenter._whole(PICTURES[0], one, row) for one, row in pairs]
    if model.tied_head:
        assert len(passed) > 1  # some are asked again
    alone = said_alone(segmenter, rows)
    assert [said.tokens for said in together] == [said.tokens for said in alone]


def test_what_a_group_may_say_is_what_it_has_room_for() -> None:
    """Every answer of the templates, and every explanation; within the forecast of one question."""
    plan = Plan.parse({"model": "7b"})
    tokenizer, limits = counting_tokenizer(plan), plan.tokens
    question = Question(PICTURES[0], TEXTS[0]).turn().question
    said = [tokenizer.encode([Turn(question, answer)]).labels for answer in ANSWERS]
    lengths = [sum(label >= 0 for label in labels) for labels in said]
    assert max(lengths) > USUAL
    for explain, longest in ((False, max(lengths)), (True, limits.max_new_tokens)):
        asked = [Question(PICTURES[0], text, explain=explain) for text in TEXTS * 5]
        rows = [tokenizer.encode([question.turn()]) for question in asked]
        groups = list(_groups(asked, rows, limits))
        assert [*chain.from_iterable(group.rows for group in groups)] == rows
        assert len(groups[0].rows) >= 4
        assert longest_row(asked, tokenizer, limits) <= limits.max_text_tokens
        for group in groups:
            assert group.room >= longest * len(group.rows)


def test_an_answer_that_nobody_waits_for_ends_at_its_next_token(segmenter: Segmenter) -> None:
    asked = [Question(PICTURES[0], text) for text in TEXTS]
    before = [one.text for one in segmenter.ask_all(asked)]
    left = iter([False, False, True, True])
    segmenter.stopped = lambda: next(left)
    with pytest.raises(Stopped):
        next(segmenter.ask_all(asked))
    assert not list(left)
    segmenter.stopped = not_stopped
    assert [one.text for one in segmenter.ask_all(asked)] == before
    segmenter.stopped, segmenter.seen = lambda: True, None
    segmenter.model.encode = lambda *_: pytest.fail("encoded")  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        next(segmenter.ask_all(asked))


def test_long_answers_are_given_one_after_the_other() -> None:
    """Whoever leaves in the middle of a group does not wait for all of them."""
    segmenter, passed = Segmenter.__new__(Segmenter), []
    segmenter.plan = tiny_plan()

    def said(image: Path, group: Group) -> list[Said]:
        passed.append(len(group.rows))
        return [Said(ended=len(group.rows) == 1) for _ in group.rows]

    segmenter._rows = lambda asked: [Encoded([1] * 20, [-100] * 20, 4) for _ in asked]  # type: ignore
    segmenter._said = said  # type: ignore[assignment,method-assign]
    segmenter._shown = lambda *_: Answer("", np.zeros((0, 1, 1), bool), 0.0)  # type: ignore
    answers = segmenter.ask_all([Question(PICTURES[0], text) for text in TEXTS[:3]])
    next(answers)
    assert passed == [3, 1]
    assert len(list(answers)) == 2 and passed == [3, 1, 1, 1]
