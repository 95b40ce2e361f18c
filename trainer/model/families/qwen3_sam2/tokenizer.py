"""Qwen3-VL's conversation and tokenizer, with [SEG] in a spare row.

Without a system turn, as Sa2VA has it; ``/`` ends a line here:
``<|im_start|>user/{picture}/{q1}<|im_end|>/<|im_start|>assistant/{a1}<|im_end|>/…``.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.model.tokenizer import ConversationTokenizer
from trainer.prompts import SEG_TOKEN, Turn, checked

START, END = "<|im_start|>", "<|im_end|>"
PICTURE = "<|image_pad|>"


class QwenTokenizer(ConversationTokenizer):
    """A fast tokenizer with Qwen's tokens."""

    special = {"eos_token": END, "pad_token": "<|endoftext|>"}  # noqa: RUF012
    new_tokens = (SEG_TOKEN,)
    picture = f"<|vision_start|>{PICTURE}<|vision_end|>"
    picture_token = PICTURE

    @staticmethod
    def segments(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """Context up to the answer (False), then the answer with its end (True), and so on.

        Raises PromptError as `checked`.
        """
        pieces: list[tuple[str, bool]] = []
        between = ""
        for turn in checked(turns):
            asked = f"{between}{START}user\n{turn.question}{END}\n{START}assistant\n"
            pieces.append((asked, False))
            between = "\n"
            if turn.answer is not None:
                pieces.append((f"{turn.answer}{END}", True))
        return pieces
