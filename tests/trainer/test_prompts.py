"""Templates, the layout of conversations, their supervised parts, and injection by user text."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model.families.llava_sam.conversation import conversation, segments
from trainer.prompts import (
    ANSWERS,
    EXPLANATORY_QUESTIONS,
    LONG_QUESTIONS,
    RESERVED_TOKENS,
    SHORT_QUESTIONS,
    Choose,
    PromptError,
    Turn,
    answer_for,
    evaluation_turn,
    explanatory_answer_for,
    explanatory_question_for,
    question_for,
)

QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>", "<|endoftext|>"]  # fmt: skip
TOKENS = ["<image>", "[SEG]", "<im_start>", "<im_end>", "</s>", *QWEN]
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


def nth(index: int) -> Choose:
    def choose(options: Sequence[str]) -> str:
        return options[index]

    return choose


def test_every_template_as_spelled_out() -> None:
    assert [question_for("red cup", False, nth(i)) for i in range(len(SHORT_QUESTIONS))] == [
        "<image>\nCan you segment the red cup in this image?",
        "<image>\nPlease segment the red cup in this image.",
        "<image>\nWhat is red cup in this image? Please respond with segmentation mask.",
        "<image>\nWhat is red cup in this image? Please output segmentation mask.",
    ]
    sentence = "Where can one sit?"
    assert [question_for(sentence, True, nth(i)) for i in range(len(LONG_QUESTIONS))] == [
        "<image>\nWhere can one sit? Please respond with segmentation mask.",
        "<image>\nWhere can one sit? Please output segmentation mask.",
    ]
    endings = range(len(EXPLANATORY_QUESTIONS))
    assert [explanatory_question_for(sentence, nth(i)) for i in endings] == [
        "<image>\nWhere can one sit? Please output segmentation mask and explain why.",
        "<image>\nWhere can one sit? Please output segmentation mask and explain the reason.",
        "<image>\nWhere can one sit? Please output segmentation mask and give some explanation.",
    ]
    assert [answer_for(nth(i)) for i in range(len(ANSWERS))] == [
        "It is [SEG].",
        "Sure, [SEG].",
        "Sure, it is [SEG].",
        "Sure, the segmentation result is [SEG].",
        "[SEG].",
    ]
    assert explanatory_answer_for("  It has legs.\n", nth(1)) == "Sure, [SEG]. It has legs."
    assert set(RESERVED_TOKENS) == set(TOKENS)


@pytest.mark.parametrize(
    ("phrase", "kept"),
    [
        ("  Red Cup \n", "Red Cup"),
        ("the cup.", "the cup"),
        ("the cup ?", "the cup"),
        ("the cup..", "the cup."),
        ("no. 3", "no. 3"),
        ("{text} {0} {", "{text} {0} {"),
        ("50% %s", "50% %s"),
    ],
)
def test_phrases_are_cleaned(phrase: str, kept: str) -> None:
    expected = f"<image>\nPlease segment the {kept} in this image."
    assert question_for(phrase, False, nth(1)) == expected


def test_sentences_keep_their_punctuation() -> None:
    expected = "<image>\nSit. Please output segmentation mask."
    assert question_for(" Sit. ", True, nth(1)) == expected


def test_conversation_as_spelled_out() -> None:
    turns = [
        Turn(question_for("red cup", False, nth(0)), "It is [SEG]."),
        Turn(question_for("What holds tea?", True, nth(1)), "Sure, [SEG]. It is a pot."),
    ]
    expected = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the human's questions. USER: <image>\n"
        "Can you segment the red cup in this image? ASSISTANT: It is [SEG].</s>USER: What holds "
        "tea? Please output segmentation mask. ASSISTANT: Sure, [SEG]. It is a pot.</s>"
    )
    assert conversation(turns) == expected
    assert segments(turns) == [
        (
            SYSTEM + " USER: <image>\nCan you segment the red cup in this image? ASSISTANT:",
            False,
        ),
        (" It is [SEG].</s>", True),
        ("USER: What holds tea? Please output segmentation mask. ASSISTANT:", False),
        (" Sure, [SEG]. It is a pot.</s>", True),
    ]


def test_answer_to_be_generated_ends_at_the_role() -> None:
    turns = [Turn("<image>\nHi", "Hello"), Turn("What now?", None)]
    assert segments(turns) == [
        (SYSTEM + " USER: <image>\nHi ASSISTANT:", False),
        (" Hello</s>", True),
        ("USER: What now? ASSISTANT:", False),
    ]
    # What generation starts from is a prefix of what training saw.
    assert conversation([turns[0], Turn("What now?", "Tea")]).startswith(conversation(turns))


def test_evaluation_turn() -> None:
    assert evaluation_turn("red cup", False) == Turn(
        "<image>\nCan you segment the red cup in this image?", "[SEG]."
    )
    assert evaluation_turn("Where?", True) == Turn(
        "<image>\nWhere? Please respond with segmentation mask.", "[SEG]."
    )


def plain_conversation(turns: Sequence[Turn]) -> str:
    text = SYSTEM + " "
    for index, turn in enumerate(turns):
        question = turn.question
        if index and question.startswith("<image>\n"):
            question = question[len("<image>\n") :]
        text += "USER: " + question + " ASSISTANT:"
        if turn.answer is not None:
            text += " " + turn.answer + "</s>"
    return text


@pytest.mark.parametrize("seed", range(50))
def test_pieces_join_to_the_plain_conversation(seed: int) -> None:
    rng = random.Random(seed)
    turns = []
    for index in range(rng.randint(1, 5)):
        text = " ".join(rng.choices(["Ölkanne", "cup", "ASSISTANT:", "{x}", "猫", "\n"], k=4)) + "x"
        question = question_for(text, rng.random() < 0.5, rng.choice)
        if index and rng.random() < 0.5:
            question = "And " + text
        turns.append(Turn(question, answer_for(rng.choice)))
    if rng.random() < 0.3:
        turns[-1] = Turn(turns[-1].question, None)
    pieces = segments(turns)
    joined = "".join(piece for piece, _ in pieces)
    assert joined == plain_conversation(turns) == conversation(turns)
    assert joined.count("<image>") == 1 and "<image>" in pieces[0][0]
    assert [piece for piece, supervised in pieces if supervised] == [
        f" {turn.answer}</s>" for turn in turns if turn.answer is not None
    ]
    assert "[SEG]" not in "".join(piece for piece, supervised in pieces if not supervised)


@pytest.mark.parametrize("token", TOKENS)
def test_injected_tokens_are_refused_by_name(token: str) -> None:
    for text in (token, f"a {token} b", f"a{token}.", f"{token} b"):
        for is_sentence in (False, True):
            with pytest.raises(PromptError) as caught:
                question_for(text, is_sentence, nth(0))
            assert token in str(caught.value)
            with pytest.raises(PromptError):
                evaluation_turn(text, is_sentence)
        with pytest.raises(PromptError):
            explanatory_question_for(text, nth(0))
        with pytest.raises(PromptError):
            explanatory_answer_for(text, nth(0))
        # Questions that were not built by question_for are held to the same.
        for turns in (
            [Turn(f"<image>\n{text}", "Yes")],
            [Turn("<image>\nHi", "Yes"), Turn(f"So {text}", None)],
        ):
            with pytest.raises(PromptError) as caught:
                segments(turns)
            assert token in str(caught.value)
    if token != "[SEG]":
        with pytest.raises(PromptError):
            segments([Turn("<image>\nHi", f"It is {token}.")])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*TOKENS, "<im", "age>", "[SE", "G]", ".", "?", " ", "</", "s>"])),
    st.booleans(),
    st.integers(0, 1),
)
def test_whatever_gets_through_adds_no_token(
    parts: list[str], is_sentence: bool, index: int
) -> None:
    try:
        question = question_for("".join(parts), is_sentence, nth(index))
    except PromptError:
        return
    text = conversation([Turn(question, None)])
    assert {token: text.count(token) for token in TOKENS} == dict.fromkeys(TOKENS, 0) | {
        "<image>": 1
    }


@pytest.mark.parametrize("text", ["", " \n", ".", " ? "])
def test_empty_phrases_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        question_for(text, False, nth(0))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "at least one"),
        ([Turn("<image>\nHi", None), Turn("Hi", "Yes")], "turn 0"),
        ([Turn("Hi", "Yes")], "must begin"),
        ([Turn("Hi <image>", "Yes")], "must begin"),
        ([Turn("<image>\n", "Yes")], "question is empty"),
        ([Turn("<image>\nHi", " ")], "answer is empty"),
        ([Turn("<image>\n<image>\nHi", "Yes")], "<image>"),
    ],
)
def test_unfit_conversations_are_refused(turns: list[Turn], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        segments(turns)


def test_module_needs_no_torch() -> None:
    code = "import sys, trainer.prompts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
