"""A published checkpoint's tokenizer -> the one file that its family's tokenizer reads."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from profiles.files import read_object
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.weights import WeightsError, legible


def convert_tokenizer(
    folder: Path, target: Path, rows: int, family: type[ConversationTokenizer]
) -> dict[str, int]:
    """Write the folder's tokenizer with the family's tokens to `target`; returns those added.

    `rows` is the model's number of token rows: every id must have one. Raises WeightsError.
    """
    with legible(folder, "the tokenizer must be the one that came with the language model"):
        return _convert(family.published(folder), folder, target, rows, family)


def _convert(
    tokenizer: Tokenizer,
    folder: Path,
    target: Path,
    rows: int,
    family: type[ConversationTokenizer],
) -> dict[str, int]:
    padding = family.special["pad_token"]
    needed = [token for token in family.special.values() if token != padding]
    absent = [token for token in needed if tokenizer.token_to_id(token) is None]
    if absent:
        raise WeightsError(
            f"{folder}: its tokenizer has no {', '.join(absent)}; the language model of this "
            "family has another"
        )
    added = _add_recorded(tokenizer, folder)
    # The new ones first, as in a released LISA's last rows; this project's tokens follow.
    for token in (*family.new_tokens, family.picture_token, padding):
        added |= _add(tokenizer, token)
    if tokenizer.get_vocab_size() > rows:
        raise WeightsError(
            f"{folder}: its tokenizer has {tokenizer.get_vocab_size()} tokens, "
            f"the model has {rows} rows for them; choose the model that this checkpoint is of"
        )
    family.as_trained(tokenizer)
    tokenizer.save(str(target))
    return added


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
