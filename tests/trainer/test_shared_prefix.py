"""Questions that share the prefix of their picture: what a row of its own would give each.

The separate rows are collated as conversations always were, without blocks, places or masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from profiles.plan import Plan
from profiles.settings import Encoder
from tests import coarse_lisa, toy_family
from tests.conftest import PHOTOS, tiny_plan
from trainer.batch import Batch, Encoded, sharing_prefix
from trainer.data.feature_cache import FeatureCache
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import Sample, SampleSet, collate
from trainer.ignored import IGNORE_LABEL
from trainer.model.build import build, read_tokenizer
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.segmentation_model import SegmentationModel, set_module
from trainer.model.tokenizer import ConversationTokenizer
from trainer.prompts import IMAGE_PREFIX, SEG_TOKEN, Turn
from trainer.reporter import Reporter
from trainer.run.feature_caches import prepare_caches
from trainer.step import accumulate, total_of

CACHED = {"cached_encoders": ["mask", "vision"], "model": coarse_lisa.NAME}
MOST_PICTURES = 3  # of one batch
# Of unequal length; without a mask, with one, with two in one answer.
ASKED = (
    ("What is the dog?", "It is [SEG]."),
    ("Where would somebody sit down to read a long book in the sun?", "Sure, [SEG]."),
    ("Is it day?", "Yes, it is day, as the shadows on the grass show."),
    ("What are the two things on the table?", "They are [SEG] and, behind it, [SEG]."),
    ("What is it?", "[SEG]."),
)


@dataclass(frozen=True)
class Both:
    """The same questions in rows of their own and in shared ones."""

    separate: Batch
    shared: Batch


def rows_of(
    tokenizer: ConversationTokenizer, asked: Sequence[tuple[str, str]], image_tokens: int
) -> list[Encoded]:
    return [
        tokenizer.encode([Turn(IMAGE_PREFIX + question, answer)], image_tokens)
        for question, answer in asked
    ]


Caches = dict[Encoder, FeatureCache]


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    coarse_lisa.register()
    yield
    coarse_lisa.forget()


class Coarse(FeatureCache):
    """lisa-tiny's features, for the coarse one."""

    def read(self, image: Path) -> dict[str, Tensor]:
        return coarse_lisa.thinned(super().read(image))


@pytest.fixture(scope="module")
def caches(cache: Path) -> Caches:
    """Features of the photographs, so that no test computes them for every row."""
    pictures = [item.image_path for item in read_split(PHOTOS, "train", MOST_PICTURES)]
    quiet = Reporter(lambda line: None, lambda *_: None)
    plan = tiny_plan(**CACHED | {"model": "tiny"})
    made = prepare_caches(plan, pictures, cache, Accelerator(cpu=True), quiet)
    return made | {"mask": Coarse(cache, made["mask"].key)}


def both(plan: Plan, *pictures: Sequence[int], caches: Caches | None = None) -> Both:
    """The numbered questions about each of the first photographs."""
    tokenizer = read_tokenizer(plan)
    items = read_split(PHOTOS, "train", MOST_PICTURES)
    samples = SampleSet(items, plan, tokenizer, caches or {}, training=True)
    drawn = np.random.default_rng(0)
    separate: list[Sample] = []
    shared: list[Sample] = []
    for number, chosen in enumerate(pictures):
        sample = samples[0, number]
        asked = [ASKED[n] for n in chosen]
        rows = rows_of(tokenizer, asked, sample.encoded.image_tokens)
        masks = [answer.count(SEG_TOKEN) for _, answer in asked]
        side = plan.mask_loss_resolution
        targets = [drawn.integers(0, 2, (count, side, side), np.uint8) for count in masks]
        separate += [
            replace(sample, encoded=row, targets=target)
            for row, target in zip(rows, targets, strict=True)
        ]
        together = sharing_prefix(rows)
        shared.append(replace(sample, encoded=together, targets=np.concatenate(targets)))
    return Both(collate(separate, tokenizer), collate(shared, tokenizer))


def trained_model(plan: Plan) -> SegmentationModel:
    """As after a few steps: while B is zero, every A's gradient is zero too."""
    model = build(plan, read_tokenizer(plan), torch.device("cpu"))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    return model


Gradients = dict[str, Tensor]


def results(model: SegmentationModel, batch: Batch) -> tuple[Tensor, Gradients, Tensor]:
    """Sums of the losses, every gradient, and the mask logits."""
    accelerator = Accelerator(cpu=True)
    model.train().zero_grad(set_to_none=True)
    sums = accumulate(model, [batch], total_of([batch], accelerator), accelerator)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return sums, gradients, model.eval().predict(batch)


def exact(model: SegmentationModel) -> SegmentationModel:
    """The model in fp64, with its norms, which transformers computes in fp32 whatever comes in."""
    model = model.double()
    model.dtype = torch.float64
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith("RMSNorm"):
            own = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64)
            own.weight = norm.weight
            set_module(model, name, own)
    return model


def apart_by(one: Gradients, other: Gradients) -> float:
    """The norm of their difference, over all trained tensors."""
    parts = [(value.double() - other[name].double()).norm() for name, value in one.items()]
    return float(torch.stack(parts).norm())


def size_of(gradients: Gradients) -> float:
    """The norm of all together."""
    return apart_by(gradients, {name: torch.zeros(()) for name in gradients})


@contextmanager
def exact_attention() -> Iterator[None]:
    """Attention alone in fp64: with fp32 scores of 24 an exponential is off by up to 1e-6, in
    separate and shared rows differently."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def exactly(*qkv: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        mask = None if attn_mask is None else attn_mask.double()
        return attend(*(t.double() for t in qkv), attn_mask=mask, **rest).to(qkv[0].dtype)

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", exactly):
        yield


def assert_equal(
    model: SegmentationModel, found: Both, each: float | None = None
) -> tuple[Gradients, Gradients]:
    """Losses, gradients and masks agree; returns the gradients of separate and of shared rows.

    The gradients of `each` tensor within so much of its own, all together within 2e-6.
    """
    sums, gradients, masks = results(model, found.separate)
    shared_sums, shared_gradients, shared_masks = results(model, found.shared)
    torch.testing.assert_close(shared_sums, sums, rtol=1e-6, atol=0)
    assert float((shared_masks - masks).norm()) <= 1e-6 * float(masks.norm())
    assert shared_gradients.keys() == gradients.keys()
    whole = size_of(gradients)
    assert apart_by(gradients, shared_gradients) <= 2e-6 * whole
    for name, value in gradients.items() if each else ():
        off = float((value - shared_gradients[name]).norm())
        # A key's bias has no effect on a softmax: its gradient is rounding alone.
        assert off <= each * float(value.norm()) + each / 1000 * whole, name
    assert all(bool(value.any()) for name, value in gradients.items() if "lora" in name)
    return gradients, shared_gradients


SHAPES = {
    "one": [[0]],
    "two": [[0, 1]],
    "three, unequal": [[4, 1, 0]],
    "one without a mask": [[0, 2, 1]],
    "two masks in a block": [[3, 1]],
    "all five": [[0, 1, 2, 3, 4]],
    "rows of different K, padded": [[0, 1, 4], [2], [3, 0]],
    "no mask at all": [[2, 2]],
}
LEVERS: dict[str, dict[str, Any]] = {
    "encoders in every step": {"cached_encoders": [], "weights": "random"},
    "checkpointed": {"checkpointed_layers": "all"},
    "some checkpointed": {"checkpointed_layers": 1},
    "host layers": {"checkpointed_layers": "all", "host_layers": 2, "host_embeddings": True},
    "NF4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "all linears": {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
        "train": ["mask_decoder", "text_hidden_fcs", "projector", "token_rows"],
    },
}


# Flat memory in the plan's dtype; kernels that know no fp64; seconds of convolutions.
IN_FP32 = ("host layers", "NF4", "encoders in every step")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shared_row_equals_its_separate_rows(shape: list[list[int]], caches: Caches) -> None:
    """In fp64 they are the same; in fp32 both are about as far from that, and attention is why."""
    plan = tiny_plan(**CACHED)
    found = both(plan, *shape, caches=caches)
    model = trained_model(plan)
    separate, shared = assert_equal(model, found)
    with exact_attention():
        assert_equal(model, found, each=1e-6)  # up to 0.6e-6
    truth, _ = assert_equal(exact(model), found, each=1e-12)
    assert 0 < apart_by(shared, truth) < 3 * apart_by(separate, truth)  # 0.97 to 2.4 times


@pytest.mark.parametrize("lever", LEVERS)
def test_under_every_lever(lever: str, caches: Caches) -> None:
    plan = tiny_plan(**(CACHED | LEVERS[lever]))
    model = trained_model(plan)
    kept = caches if plan.cached_encoders else None
    found = both(plan, [0, 2, 3], [1], caches=kept)
    if lever not in IN_FP32:
        assert_equal(exact(model), found, each=1e-12)
    else:
        with exact_attention():
            assert_equal(model, found, each=1e-6)  # up to 0.4e-6


@pytest.fixture
def toy() -> Iterator[None]:
    toy_family.register()
    yield
    toy_family.forget()


@pytest.mark.usefixtures("toy")
def test_another_familys_positions_and_layer_inputs_too() -> None:
    """Its positions have three axes, [SEG]'s own state prompts, and keys are in groups."""
    plan = Plan.parse(
        {"model": "toy", "weights": "random", "quantization": "none", "cached_encoders": [],
         "dtype": "fp32", "mask_loss_resolution": 32, "micro_batch": 1, "effective_batch": 1,
         "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}}
    )  # fmt: skip
    model = trained_model(plan)
    assert_equal(exact(model), both(plan, [0, 3, 1], [2]), each=1e-12)


def test_a_block_does_not_change_with_another_ones_text() -> None:
    """Bit for bit, where the other has as many tokens."""
    plan = tiny_plan()
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, torch.device("cpu")).eval()
    batch = both(plan, [0, 1, 4]).shared
    assert batch.blocks is not None
    with torch.no_grad():
        before, masks = model.hidden_states(batch), model.predict(batch)
        other = batch.input_ids.clone()
        second = (batch.blocks == 2) & (other != tokenizer.seg_id)
        other[second] = (other[second] + 7) % 500 + 5
        changed = replace(batch, input_ids=other)
        after, changed_masks = model.hidden_states(changed), model.predict(changed)
    for block in (0, 1, 3):
        assert torch.equal(before[batch.blocks == block], after[batch.blocks == block])
    assert not torch.equal(before[second], after[second])
    same = [bool(torch.equal(a, b)) for a, b in zip(masks, changed_masks, strict=True)]
    assert same == [True, False, True]


def test_one_question_is_a_row_as_ever() -> None:
    plan = tiny_plan()
    found = both(plan, [0])
    assert found.shared.blocks is None and found.shared.places is None
    assert torch.equal(found.shared.input_ids, found.separate.input_ids)


def test_the_mask_is_made_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.model import segmentation_model

    made: list[int] = []
    real = segmentation_model.attention_mask

    def counted(*given: Any) -> Tensor:
        made.append(1)
        return real(*given)

    monkeypatch.setattr(segmentation_model, "attention_mask", counted)
    plan = tiny_plan()
    model = trained_model(plan)
    model.predict(both(plan, [0, 1]).shared)
    assert len(made) == 1 < len(model.decoder_layers)


def apart(row: Encoded) -> list[Encoded]:
    """The rows that a shared one was made of."""
    if not row.starts:
        return [row]
    prefix = row.starts[0]
    return [
        Encoded(
            row.input_ids[:prefix] + row.input_ids[start:end],
            row.labels[:prefix] + row.labels[start:end],
            row.image_tokens,
        )
        for start, end in pairwise([*row.starts, len(row.input_ids)])
    ]


@cache
def vocabularies() -> list[ConversationTokenizer]:
    """lisa-tiny's, and as LLaMA's (SentencePiece) and Qwen's (bytes) split text, made here; and one
    that merges whatever stands side by side, words and questions too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # Many prompts that differ only behind the picture, so that merges reach over that border.
    words = ["What", "Where", "Is", "Please", "Can you", "\u00e9t\u00e9", "42"]
    corpus = [f"<im_end>\n{a} {b} ASSISTANT: {b}.</s>" for a in words for b in words] * 20
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    kinds: dict[str, Any] = {
        "sentencepiece": metaspace,
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        "unsplit": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    }
    made = [read_tokenizer(tiny_plan())]
    for name, splitter in kinds.items():
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=name == "sentencepiece"))
        tokenizer.pre_tokenizer = splitter
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=special, initial_alphabet=letters, show_progress=False
        )
        tokenizer.train_from_iterator(corpus, trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **LisaTokenizer.special)
        made.append(LisaTokenizer(fast, 3))
    return made


WORDS = st.sampled_from(["What", "Where", "Is", "Please", "Can you", "\u00e9t\u00e9", "42", "?"])
LETTERS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<[")).filter(
    lambda text: bool(text.strip())
)
TEXTS = st.lists(WORDS | LETTERS, min_size=1, max_size=4).map(" ".join)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_sharing_changes_no_questions_tokens(asked: list[tuple[str, str]]) -> None:
    """With every vocabulary that the project knows, whatever it merges across the border."""
    for tokenizer in vocabularies():
        rows = rows_of(tokenizer, asked, 3)
        row = sharing_prefix(rows)
        assert apart(row) == rows
        if len(rows) > 1:
            first = row.starts[0]
            assert row.input_ids[:first].count(tokenizer.image_id) == 3
            assert all(row.labels[start] == IGNORE_LABEL for start in row.starts)
