"""LLaVA's conversation: system prompt, roles and separators around question and answer.

It has the vicuna v1 layout:
``{system} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT: {a2}</s>``.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiles.families.llava_sam import Profile
from trainer.prompts import IMAGE_PREFIX, RESERVED_TOKENS, SEG_TOKEN, PromptError, Turn, reject

IMAGE_START_TOKEN, IMAGE_END_TOKEN, END_OF_TURN = Profile.reserved
SYSTEM_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER_ROLE, ASSISTANT_ROLE, SEPARATOR = "USER", "ASSISTANT", " "


def _checked_question(question: str, is_first: bool) -> str:
    """The question as the conversation has it: only the first one begins with ``<image>``.

    Raises:
        PromptError: the first question does not begin with the image line, or the rest of a
            question is empty or contains a reserved token.
    """
    has_image = question.startswith(IMAGE_PREFIX)
    if is_first and not has_image:
        raise PromptError(f"the first question must begin with {IMAGE_PREFIX!r}")
    body = question.removeprefix(IMAGE_PREFIX)
    reject(body, RESERVED_TOKENS, "question")
    if not body.strip():
        raise PromptError("question is empty")
    return question if is_first else body


def _checked_answer(answer: str) -> str:
    """The answer unchanged; it may hold ``[SEG]`` but no other reserved token.

    Raises:
        PromptError: it is empty or contains such a token.
    """
    reject(answer, [token for token in RESERVED_TOKENS if token != SEG_TOKEN], "answer")
    if not answer.strip():
        raise PromptError("answer is empty")
    return answer


def segments(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """The conversation in consecutive pieces, each with a flag "supervised".

    Pieces alternate: context up to and including ``ASSISTANT:`` (False), then the answer with its
    ``</s>`` (True). The space between the two belongs to the answer, because generation starts
    from a prompt that ends in ``ASSISTANT:`` and the model then writes the space (in most
    vocabularies as part of the first word). Joined, the pieces are the whole conversation.

    ``<image>`` stands once: the first question must begin with ``<image>\\n``, and that line is
    dropped from later questions.

    Args:
        turns: at least one. Only the last may have the answer None; the conversation then ends in
            ``ASSISTANT:``.

    Raises:
        PromptError: no turns, an unanswered turn before the last, an empty question or answer, no
            leading image line in the first question, or a reserved token out of place.
    """
    if not turns:
        raise PromptError("a conversation needs at least one turn")
    pieces: list[tuple[str, bool]] = []
    opening = SYSTEM_PROMPT + SEPARATOR
    for index, turn in enumerate(turns):
        question = _checked_question(turn.question, is_first=index == 0)
        context = f"{opening}{USER_ROLE}: {question}{SEPARATOR}{ASSISTANT_ROLE}:"
        pieces.append((context, False))
        opening = ""  # a later turn follows directly on the closing </s>
        if turn.answer is not None:
            pieces.append((f" {_checked_answer(turn.answer)}{END_OF_TURN}", True))
        elif index != len(turns) - 1:
            raise PromptError(f"turn {index} has no answer but is not the last")
    return pieces


def conversation(turns: Sequence[Turn]) -> str:
    """The whole conversation as one string (``segments`` joined; same errors)."""
    return "".join(piece for piece, _ in segments(turns))
