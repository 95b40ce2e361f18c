"""LISA's tokenizer: LLaMA's, with the tokens of pictures and masks."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from trainer.model.families.llava_sam.conversation import (
    END_OF_TURN,
    IMAGE_END_TOKEN,
    IMAGE_START_TOKEN,
    segments,
)
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.weights import WeightsError, legible
from trainer.prompts import IMAGE_TOKEN, SEG_TOKEN

START = "<s>"


class LisaTokenizer(ConversationTokenizer):
    """A fast tokenizer with LISA's tokens."""

    special = {  # noqa: RUF012
        "bos_token": START, "eos_token": END_OF_TURN, "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    new_tokens = (SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)
    picture = IMAGE_START_TOKEN + IMAGE_TOKEN + IMAGE_END_TOKEN
    picture_token = IMAGE_TOKEN
    segments = staticmethod(segments)

    @classmethod
    def published(cls, folder: Path) -> Tokenizer:
        """Also from LLaMA's own file, tokenizer.model."""
        model = folder / "tokenizer.model"
        if model.is_file() and not (folder / "tokenizer.json").is_file():
            return _from_sentencepiece(model)
        return super().published(folder)

    @classmethod
    def as_trained(cls, tokenizer: Tokenizer) -> None:
        """Make every text begin with the start token, as LLaMA was trained."""
        start = tokenizer.token_to_id(START)
        if tokenizer.encode("a").ids[0] != start:
            tokenizer.post_processor = TemplateProcessing(
                single=f"{START} $A", special_tokens=[(START, start)]
            )


def _from_sentencepiece(path: Path) -> Tokenizer:
    if find_spec("sentencepiece") is None:
        raise WeightsError(
            f"{path}: reading a tokenizer.model needs a package that is not installed\n"
            "    hint: pip install sentencepiece, or put a tokenizer.json beside it"
        )
    from transformers import LlamaTokenizerFast

    with TemporaryDirectory() as alone:  # without the folder's configs, which may name anything
        shutil.copy(path, Path(alone) / "tokenizer.model")
        with legible(path):
            # `legacy`: how LLaMA's checkpoints of that time were trained.
            made = LlamaTokenizerFast.from_pretrained(alone, local_files_only=True, legacy=True)
    tokenizer: Tokenizer = made.backend_tokenizer
    return tokenizer
