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
