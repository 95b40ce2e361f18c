"""A published checkpoint's tokenizer -> the one file that its family's tokenizer reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from trainer.convert.checkpoint_folder import read_object
from trainer.model.weights import WeightsError, legible
from trainer.prompts import END_OF_TURN, IMAGE_TOKEN

START, UNKNOWN, PADDING = "<s>", "<unk>", "<pad>"


def convert_tokenizer(
    folder: Path, target: Path, rows: int, new_tokens: Sequence[str]
) -> dict[str, int]:
    """Write the folder's tokenizer with the `new_tokens` to `target`; returns those added.

    `rows` is the model's number of token rows: every id must have one. Raises WeightsError.
    """
    with legible(folder, "the tokenizer must be the one that came with the language model"):
        return _convert(_read(folder), folder, target, rows, new_tokens)


def _convert(
    tokenizer: Tokenizer, folder: Path, target: Path, rows: int, new_tokens: Sequence[str]
) -> dict[str, int]:
    absent = [t for t in (UNKNOWN, START, END_OF_TURN) if tokenizer.token_to_id(t) is None]
    if absent:
        raise WeightsError(
            f"{folder}: its tokenizer has no {', '.join(absent)}; LISA needs LLaMA's tokenizer"
        )
    added = _add_recorded(tokenizer, folder)
    # In upstream's order, as in a released LISA's last rows; this project's tokens follow.
    for token in (*new_tokens, IMAGE_TOKEN, PADDING):
        added |= _add(tokenizer, token)
    if tokenizer.get_vocab_size() > rows:
        raise WeightsError(
            f"{folder}: its tokenizer has {tokenizer.get_vocab_size()} tokens, "
            f"the model has {rows} rows for them; choose the model that this checkpoint is of"
        )
    _start_sentences(tokenizer)
    tokenizer.save(str(target))
    return added


def _read(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        with legible(path):
            return Tokenizer.from_file(str(path))
    if (folder / "tokenizer.model").is_file():
        return _from_sentencepiece(folder / "tokenizer.model")
    raise WeightsError(
        f"{folder}: no tokenizer.json and no tokenizer.model here; the tokenizer must come with "
        "the language model's weights: put its file into that folder"
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


def _add_recorded(tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """Add what `added_tokens.json` records: each token must get the id it was trained under."""
    recorded = {
        token: number
        for token, number in read_object(folder / "added_tokens.json").items()
        if isinstance(number, int)
    }
    added: dict[str, int] = {}
    for token, number in sorted(recorded.items(), key=lambda item: item[1]):
        added |= _add(tokenizer, token)
        got = tokenizer.token_to_id(token)
        if got != number:
            raise WeightsError(
                f"{folder}: {token} has id {number} in added_tokens.json and {got} in the "
                "tokenizer; the two files are of different checkpoints"
            )
    return added


def _add(tokenizer: Tokenizer, token: str) -> dict[str, int]:
    if tokenizer.token_to_id(token) is not None:
        return {}
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    number = tokenizer.token_to_id(token)
    assert number is not None
    return {token: number}


def _start_sentences(tokenizer: Tokenizer) -> None:
    """Make every text begin with the start token, as LLaMA was trained."""
    start = tokenizer.token_to_id(START)
    if tokenizer.encode("a").ids[0] != start:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, start)]
        )
