"""Questions and answers of LISA (Lai et al., 2023), as text; no tokeniser, no torch.

A family's tokenizer lays a conversation out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from profiles.models import reserved_tokens

IMAGE_TOKEN, SEG_TOKEN = "<image>", "[SEG]"

Choose = Callable[[Sequence[str]], str]
"""Picks one of several templates, e.g. ``random.Random(seed).choice``."""

RESERVED_TOKENS: tuple[str, ...] = (IMAGE_TOKEN, SEG_TOKEN, *reserved_tokens())
"""Tokens with a meaning to the models, which text from outside must not contain."""

IMAGE_PREFIX = IMAGE_TOKEN + "\n"
SHORT_QUESTIONS: tuple[str, ...] = (
    IMAGE_PREFIX + "Can you segment the {text} in this image?",
    IMAGE_PREFIX + "Please segment the {text} in this image.",
    IMAGE_PREFIX + "What is {text} in this image? Please respond with segmentation mask.",
    IMAGE_PREFIX + "What is {text} in this image? Please output segmentation mask.",
)

LONG_QUESTIONS: tuple[str, ...] = (
    IMAGE_PREFIX + "{text} Please respond with segmentation mask.",
    IMAGE_PREFIX + "{text} Please output segmentation mask.",
)

EXPLANATORY_QUESTIONS: tuple[str, ...] = (
    IMAGE_PREFIX + "{text} Please output segmentation mask and explain why.",
    IMAGE_PREFIX + "{text} Please output segmentation mask and explain the reason.",
    IMAGE_PREFIX + "{text} Please output segmentation mask and give some explanation.",
)

ANSWERS: tuple[str, ...] = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)

EVALUATION_ANSWER = "[SEG]."


class PromptError(ValueError):
    """A text or conversation that must not or cannot be turned into a prompt."""


@dataclass(frozen=True)
class Turn:
    """One question and its answer; ``answer`` is None where it is still to be generated."""

    question: str
    answer: str | None


def _first(options: Sequence[str]) -> str:
    return options[0]


def reject(text: str, tokens: Sequence[str], what: str) -> None:
    """Raise ``PromptError``, naming the token, where ``text`` contains one of ``tokens``."""
    for token in tokens:
        if token in text:
            raise PromptError(f"{what} contains the reserved token {token!r}")


def _outside_text(text: str, what: str) -> str:
    """``text`` without surrounding whitespace, known to be non-empty and free of reserved tokens.

    Raises:
        PromptError: it is empty or contains a reserved token.
    """
    reject(text, RESERVED_TOKENS, what)
    stripped = text.strip()
    if not stripped:
        raise PromptError(f"{what} is empty")
    return stripped


def question_for(text: str, is_sentence: bool, choose: Choose) -> str:
    """The question, with its leading ``<image>`` line, that asks for the mask of ``text``.

    Args:
        text: a phrase such as ``the red cup``, or a whole sentence. Case is kept, surrounding
            whitespace is not. A phrase loses one trailing ``.`` or ``?``, since the templates
            carry on after it; a sentence keeps its own.
        is_sentence: whether ``text`` is a question by itself (long templates) or part of one.
        choose: picks the template.

    Raises:
        PromptError: ``text`` is empty or contains a reserved token.
    """
    body = _outside_text(text, "question text")
    if is_sentence:
        return choose(LONG_QUESTIONS).format(text=body)
    if body.endswith((".", "?")):
        body = body[:-1].rstrip()
        if not body:
            raise PromptError("question text is empty but for punctuation")
    return choose(SHORT_QUESTIONS).format(text=body)


def explanatory_question_for(sentence: str, choose: Choose) -> str:
    """As ``question_for`` with a sentence, asking for an explanation besides the mask.

    Raises:
        PromptError: ``sentence`` is empty or contains a reserved token.
    """
    body = _outside_text(sentence, "question text")
    return choose(EXPLANATORY_QUESTIONS).format(text=body)


def answer_for(choose: Choose) -> str:
    """One of ``ANSWERS``; each holds ``[SEG]`` once."""
    return choose(ANSWERS)


def explanatory_answer_for(explanation: str, choose: Choose) -> str:
    """One of ``ANSWERS``, a space, and the explanation (surrounding whitespace stripped).

    Raises:
        PromptError: ``explanation`` is empty or contains a reserved token.
    """
    body = _outside_text(explanation, "explanation")
    return f"{answer_for(choose)} {body}"


def evaluation_turn(text: str, is_sentence: bool) -> Turn:
    """The turn scored at evaluation: first template, answer ``[SEG].`` (teacher-forced).

    Raises:
        PromptError: ``text`` is empty or contains a reserved token.
    """
    return Turn(question_for(text, is_sentence, _first), EVALUATION_ANSWER)


def checked(turns: Sequence[Turn]) -> list[Turn]:
    """A conversation's turns as all families lay them out: ``<image>`` stands once, at the start.

    The line is dropped from later questions. Only the last turn may have the answer None.

    Raises:
        PromptError: no turns, an unanswered turn before the last, an empty question or answer, no
            leading image line in the first question, or a reserved token out of place.
    """
    if not turns:
        raise PromptError("a conversation needs at least one turn")
    unanswered = [number for number, turn in enumerate(turns[:-1]) if turn.answer is None]
    if unanswered:
        raise PromptError(f"turn {unanswered[0]} has no answer but is not the last")
    return [
        Turn(_checked_question(turn.question, number == 0), _checked_answer(turn.answer))
        for number, turn in enumerate(turns)
    ]


def _checked_question(question: str, is_first: bool) -> str:
    has_image = question.startswith(IMAGE_PREFIX)
    if is_first and not has_image:
        raise PromptError(f"the first question must begin with {IMAGE_PREFIX!r}")
    body = question.removeprefix(IMAGE_PREFIX)
    reject(body, RESERVED_TOKENS, "question")
    if not body.strip():
        raise PromptError("question is empty")
    return question if is_first else body


def _checked_answer(answer: str | None) -> str | None:
    """It may hold ``[SEG]`` but no other reserved token."""
    if answer is None:
        return None
    reject(answer, [token for token in RESERVED_TOKENS if token != SEG_TOKEN], "answer")
    if not answer.strip():
        raise PromptError("answer is empty")
    return answer
