"""Conversations as token ids, labels and masks, whatever tokenizer a model folder brings.

The new tokens are looked up by name, never assumed to be the last ones: some tokenizers prepend a
space token, some have spare rows.
"""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Self

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from profiles.families import ModelProfile
from trainer.batch import Encoded
from trainer.ignored import IGNORE_LABEL
from trainer.model.weights import WeightsError, legible, packaged_folder
from trainer.prompts import IMAGE_TOKEN, SEG_TOKEN, Turn

_TRIAL = Turn(f"{IMAGE_TOKEN}\nWhat is to be segmented?", f"It is {SEG_TOKEN}.")


class TooLong(ValueError):
    """A sample exceeds the plan's token limits; the message names the sample and the limit."""


def _shipped(name: str) -> bytes:
    """The tokenizer.json of the vocabulary of that name; without one lisa-tiny's."""
    if not name:
        return (packaged_folder() / "tokenizer.json").read_bytes()
    return gzip.decompress((files("profiles") / "vocabularies" / f"{name}.json.gz").read_bytes())


class ConversationTokenizer(ABC):
    """A fast tokenizer and a family's conversation; a picture takes `image_tokens` at most."""

    special: ClassVar[dict[str, str]]  # as PreTrainedTokenizerFast names them; "eos_token" ends
    new_tokens: ClassVar[tuple[str, ...]]  # which the language model has to learn
    picture: ClassVar[str]  # the text for `<image>`, with the picture's token in it once
    picture_token: ClassVar[str]

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.image_tokens = image_tokens
        # A space after a special token belongs to the prompt: the tokenizer must keep it.
        known = tokenizer.backend_tokenizer.token_to_id
        missing = [token for token in self.new_tokens if known(token) is None]
        tokenizer.add_tokens(missing, special_tokens=True)
        self.tokenizer = tokenizer
        self.image_id = self._id(self.picture_token)
        self.seg_id = self._id(SEG_TOKEN)
        self.end_id = self._id(self.special["eos_token"])
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self.new_ids = [self._id(token) for token in self.new_tokens]

    @classmethod
    def read(cls, folder: Path, image_tokens: int) -> Self:
        """From a folder with `tokenizer.json`. Raises WeightsError naming it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError(f"{path}: no tokenizer.json in the model folder")
        with legible(path, "lisa-train convert writes one beside the weights"):
            made = cls(
                PreTrainedTokenizerFast(tokenizer_file=str(path), **cls.special), image_tokens
            )
            made.encode([_TRIAL])
        return made

    @classmethod
    def stand_in(cls, profile: ModelProfile) -> Self:
        """The shipped vocabulary with this family's tokens, where no weights bring a tokenizer."""
        return cls(cls._shipped(profile.shipped_vocabulary.lower()), profile.most_image_tokens)

    @classmethod
    @lru_cache(maxsize=2)  # Qwen3's takes a third of a second to read, and nobody changes it
    def _shipped(cls, name: str) -> PreTrainedTokenizerFast:
        """The vocabulary of that name, or else lisa-tiny's, with the picture's token."""
        with TemporaryDirectory() as folder:  # an object would be copied: half a second of Qwen's
            path = Path(folder) / "tokenizer.json"
            path.write_bytes(_shipped(name))
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), **cls.special)
        tokenizer.add_tokens([cls.picture_token], special_tokens=True)
        return tokenizer

    @classmethod
    def published(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a published checkpoint's folder. Raises WeightsError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError(
                f"{folder}: no tokenizer.json and no tokenizer.model here; the tokenizer must come "
                "with the language model's weights: put its file into that folder"
            )
        with legible(path):
            return Tokenizer.from_file(str(path))

    @classmethod
    def as_trained(cls, tokenizer: Tokenizer) -> None:
        """Set what the model was trained with and a published tokenizer's file does not say."""
        del tokenizer

    @staticmethod
    @abstractmethod
    def segments(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """The conversation in consecutive pieces, each with a flag "supervised"; `<image>` once.

        Raises PromptError.
        """

    def text(self, turns: Sequence[Turn]) -> str:
        """The whole conversation, `<image>` in it. Raises PromptError."""
        return "".join(piece for piece, _ in self.segments(turns))

    def _id(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if number is None or number == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no {token!r} token")
        return int(number)

    def encode(self, turns: Sequence[Turn], image_tokens: int | None = None) -> Encoded:
        """Ids and labels of a conversation; `<image>` becomes `image_tokens` positions, or the
        most that a picture takes.

        The whole text is tokenised at once and labels follow character spans, so no tokenizer's
        treatment of a piece's first space can shift them.
        """
        count = self.image_tokens if image_tokens is None else image_tokens
        text, supervised = "", []
        for piece, is_supervised in self.segments(turns):
            piece = piece.replace(IMAGE_TOKEN, self.picture)
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
                ids += [token] * count
                labels += [IGNORE_LABEL] * count
                continue
            taught = end > start and any(a <= start < b for a, b in supervised)
            ids.append(token)
            labels.append(token if taught else IGNORE_LABEL)
        return Encoded(ids, labels, count)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens kept."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
