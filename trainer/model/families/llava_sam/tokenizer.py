"""LISA's tokenizer: LLaMA's, with the tokens of pictures and masks."""

from __future__ import annotations

from trainer.model.families.llava_sam.conversation import segments
from trainer.model.tokenizer import ConversationTokenizer
from trainer.prompts import (
    END_OF_TURN,
    IMAGE_END_TOKEN,
    IMAGE_START_TOKEN,
    IMAGE_TOKEN,
    SEG_TOKEN,
)


class LisaTokenizer(ConversationTokenizer):
    """A fast tokenizer with LISA's tokens."""

    special = {  # noqa: RUF012
        "bos_token": "<s>", "eos_token": END_OF_TURN, "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    new_tokens = (SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)
    picture = IMAGE_START_TOKEN + IMAGE_TOKEN + IMAGE_END_TOKEN
    picture_token = IMAGE_TOKEN
    segments = staticmethod(segments)
