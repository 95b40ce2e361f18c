"""LLaVA's conversation: system prompt, roles and separators around question and answer.

It has the vicuna v1 layout:
``{system} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT: {a2}</s>``.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiles.families.llava_sam import Profile
from trainer.prompts import Turn, checked

IMAGE_START_TOKEN, IMAGE_END_TOKEN, END_OF_TURN = Profile.reserved
SYSTEM_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER_ROLE, ASSISTANT_ROLE, SEPARATOR = "USER", "ASSISTANT", " "


def segments(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """The conversation in consecutive pieces, each with a flag "supervised".

    Pieces alternate: context up to and including ``ASSISTANT:`` (False), then the answer with its
    ``</s>`` (True). The space between the two belongs to the answer, because generation starts
    from a prompt that ends in ``ASSISTANT:`` and the model then writes the space (in most
    vocabularies as part of the first word). Joined, the pieces are the whole conversation; without
    the last answer it ends in ``ASSISTANT:``.

    Raises PromptError as `checked`.
    """
    pieces: list[tuple[str, bool]] = []
    opening = SYSTEM_PROMPT + SEPARATOR
    for turn in checked(turns):
        context = f"{opening}{USER_ROLE}: {turn.question}{SEPARATOR}{ASSISTANT_ROLE}:"
        pieces.append((context, False))
        opening = ""  # a later turn follows directly on the closing </s>
        if turn.answer is not None:
            pieces.append((f" {turn.answer}{END_OF_TURN}", True))
    return pieces


def conversation(turns: Sequence[Turn]) -> str:
    """The whole conversation as one string (``segments`` joined; same errors)."""
    return "".join(piece for piece, _ in segments(turns))
