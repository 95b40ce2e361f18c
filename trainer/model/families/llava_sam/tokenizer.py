"""Conversations as token ids, labels and masks, whatever tokenizer a model folder brings.

The new tokens are looked up by name, never assumed to be the last ones: some tokenizers prepend a
space token, some have spare rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from trainer.batch import Encoded
from trainer.losses import IGNORE_LABEL
from trainer.model.families.llava_sam.conversation import segments
from trainer.model.weights import WeightsError, legible
from trainer.prompts import (
    END_OF_TURN,
    IMAGE_END_TOKEN,
    IMAGE_START_TOKEN,
    IMAGE_TOKEN,
    SEG_TOKEN,
    Turn,
)

NEW_TOKENS = (SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)


_TRIAL = Turn(f"{IMAGE_TOKEN}\nWhat is to be segmented?", f"It is {SEG_TOKEN}.")


class TooLong(ValueError):
    """A sample over the plan's token limits; the message names it and the limit."""


class LisaTokenizer:
    """A fast tokenizer with LISA's tokens, for pictures of `image_tokens` tokens each."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.image_tokens = image_tokens
        # One space after a special token is text in the prompts, so it must not be eaten.
        missing = [t for t in NEW_TOKENS if t not in tokenizer.get_vocab()]
        tokenizer.add_tokens(missing, special_tokens=True)
        self.tokenizer = tokenizer
        self.image_id = self._id(IMAGE_TOKEN)
        self.seg_id = self._id(SEG_TOKEN)
        self.end_id = self._id(END_OF_TURN)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self.new_ids = [self._id(token) for token in NEW_TOKENS]

    @classmethod
    def read(cls, folder: Path, image_tokens: int) -> LisaTokenizer:
        """From a folder with `tokenizer.json`. Raises WeightsError naming it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError(f"{path}: no tokenizer.json in the model folder")
        with legible(path, "lisa-train convert writes one beside the weights"):
            fast = PreTrainedTokenizerFast(
                tokenizer_file=str(path),
                bos_token="<s>",
                eos_token=END_OF_TURN,
                pad_token="<pad>",
                unk_token="<unk>",
            )
            made = cls(fast, image_tokens)
            made.encode([_TRIAL])
        return made

    def _id(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if number is None or number == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no {token!r} token")
        return int(number)

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """Ids and labels of a conversation; one `<image>` becomes `image_tokens` positions.

        The whole text is tokenised at once and labels follow character spans, so no tokenizer's
        treatment of a piece's first space can shift them.
        """
        text, supervised = "", []
        for piece, is_supervised in segments(turns):
            piece = piece.replace(IMAGE_TOKEN, IMAGE_START_TOKEN + IMAGE_TOKEN + IMAGE_END_TOKEN)
            if is_supervised:
                supervised.append((len(text), len(text) + len(piece)))
            text += piece
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = []
        labels: list[int] = []
        for token, (start, end) in zip(
            encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            if token == self.image_id:
                ids += [token] * self.image_tokens
                labels += [IGNORE_LABEL] * self.image_tokens
                continue
            taught = end > start and any(a <= start < b for a, b in supervised)
            ids.append(token)
            labels.append(token if taught else IGNORE_LABEL)
        return Encoded(ids, labels)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens kept."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
