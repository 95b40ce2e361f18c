"""The model against independent compositions, and the allow-list against real gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

from profiles.families import VISION
from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from trainer.batch import Batch
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate
from trainer.losses import Totals
from trainer.model.build import build, read_tokenizer, skeleton
from trainer.model.families import family_of
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.layers.token_rows import TokenRowEmbedding, TokenRowHead
from trainer.model.trained import GradientCheck, GradientError, trained_names
from trainer.model.weights import WeightsError
from trainer.prompts import Turn

CPU = torch.device("cpu")
PAD = read_tokenizer(tiny_plan()).pad_id


def made(plan: Plan, names: tuple[int, ...] = (0, 3)) -> tuple[Lisa, Batch]:
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    batch = collate([samples[n] for n in names], tokenizer)
    return build(plan, tokenizer, CPU), batch


def loss_of(model: Lisa, batch: Batch) -> torch.Tensor:
    return model(batch).weighted(Totals(len(batch.answers), len(batch.targets)))


def gradients(model: Lisa, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, batch).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_exactly_the_listed_tensors_get_a_gradient(
    quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    plan = tiny_plan(quantization=quantization)
    model, batch = made(plan)
    model.eval().predict(batch)  # as every run evaluates before it trains
    model.train()
    listed = trained_names(model, plan)
    check = GradientCheck(model, listed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    gradients(model, batch)
    check()
    assert not check.done  # LoRA's A waits for a non-zero B
    optimizer.step()
    assert set(gradients(model, batch)) == set(listed)
    check()
    assert check.done


def test_the_check_finds_a_dead_and_a_stray_tensor() -> None:
    plan = tiny_plan(lora=None)
    model, batch = made(plan)
    listed = trained_names(model, plan)
    gradients(model, batch)
    with pytest.raises(GradientError, match="iou_prediction_head"):
        GradientCheck(model, [*listed, "sam.mask_decoder.iou_prediction_head.proj_in.weight"])()
    with pytest.raises(GradientError, match="text_hidden_fcs.0.bias"):
        GradientCheck(model, [n for n in listed if n != "text_hidden_fcs.0.bias"])()


def test_right_padding_changes_nothing() -> None:
    model, batch = made(tiny_plan())
    alone = [made(tiny_plan(), (n,))[1] for n in (0, 3)]
    together = model.predict(batch)
    assert bool((batch.input_ids == PAD).any())  # one of the two is padded
    apart = torch.cat([model.predict(one) for one in alone])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_mask_prompt_is_the_state_before_seg() -> None:
    model, batch = made(tiny_plan(), (0,))
    states = model.hidden_states(batch).detach()
    place = int((batch.input_ids[0] == model.seg_token_id).nonzero())
    reference = model.decode_masks(states, batch)
    changed = states.clone()
    changed[0, place] += 1
    torch.testing.assert_close(model.decode_masks(changed, batch), reference)
    changed = states.clone()
    changed[0, place - 1] += 1
    assert not torch.allclose(model.decode_masks(changed, batch), reference)


def test_several_segments_of_one_picture_belong_to_it() -> None:
    plan = tiny_plan()
    tokenizer = read_tokenizer(plan)
    model, batch = made(plan)
    turns = [
        Turn("<image>\nCan you segment the cup in this image?", "It is [SEG]."),
        Turn("Can you segment the spoon in this image?", "Sure, [SEG]."),
    ]
    ids = torch.tensor([tokenizer.encode(turns).input_ids])
    inputs = batch.each(lambda tensor: tensor[:1]).inputs
    rest = {"targets": batch.targets, "inputs": inputs}
    masks = model.predict(Batch.of(ids, ids, tokenizer.seg_id, **rest))
    assert masks.shape[0] == 2
    one = torch.tensor([tokenizer.encode(turns[:1]).input_ids])
    first = model.predict(Batch.of(one, one, tokenizer.seg_id, **rest))
    torch.testing.assert_close(masks[:1], first, rtol=1e-4, atol=1e-4)


def test_forward_equals_llava_composed_by_transformers() -> None:
    model, batch = made(tiny_plan(lora=None, train=["mask_decoder"]))
    real = batch.input_ids != PAD
    with torch.no_grad():
        ours = model.hidden_states(batch)
        theirs = model.llava.model(
            input_ids=batch.input_ids,
            pixel_values=batch.inputs[VISION]["pixels"],
            attention_mask=real.long(),
        ).last_hidden_state
    assert not bool(real.all())  # transformers masks the padding of the shorter one
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)


def test_checkpointing_is_exact() -> None:
    plain, batch = made(tiny_plan())
    expected = gradients(plain.train(), batch)
    for layers in (1, 2, 4):
        kept, _ = made(tiny_plan(checkpointed_layers=layers))
        found = gradients(kept.train(), batch)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (layers, name)


def test_supervised_logits_equal_all_logits() -> None:
    model, batch = made(tiny_plan())
    few = model(batch).ce
    model.logits_at = "all"
    torch.testing.assert_close(model(batch).ce, few)


def test_trained_rows_equal_whole_matrices_with_a_frozen_remainder() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    ids, rows = torch.randint(0, 11, (2, 5)), [3, 7]
    ids[0, 0], ids[1, 1] = 3, 7
    whole = head(table(ids)).square().sum()
    whole.backward()
    embedding, tail = TokenRowEmbedding(table, rows), TokenRowHead(head, rows)
    laid = tail(embedding(ids)).square().sum()
    torch.testing.assert_close(laid, whole)
    wanted, wanted_head = table.weight.grad[rows], head.weight.grad[rows]  # type: ignore[index]
    laid.backward()
    torch.testing.assert_close(embedding.rows.grad, wanted)
    torch.testing.assert_close(tail.rows.grad, wanted_head)


@pytest.mark.parametrize("model", ["7b", "7b-v1", "13b", "13b-v1"])
def test_true_sizes(model: str) -> None:
    """Parameter counts of the skeleton against the published sizes, no weight allocated."""
    from trainer.model.build import skeleton

    plan = Plan.parse({"model": model, "weights": "random", "micro_batch": 1})
    lisa = skeleton(plan.profile, read_tokenizer(plan))
    assert all(p.is_meta for p in lisa.parameters())
    linears = sum(m.weight.numel() for m in lisa.decoder.modules() if isinstance(m, nn.Linear))
    sam = sum(p.numel() for p in lisa.sam.mask_decoder.parameters())
    assert linears == {"7b": 6_476_005_376, "13b": 12_687_769_600}[model.removesuffix("-v1")]
    assert sam == 4_058_340
    assert plan.profile.most_image_tokens == (256 if model.endswith("-v1") else 576)


def test_missing_misshapen_and_left_over_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from trainer.model.weights import packaged_folder

    good = load_file(packaged_folder() / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((packaged_folder() / "tokenizer.json").read_bytes())
    plan = tiny_plan(weights=str(tmp_path))
    name = "text_hidden_fcs.0.weight"
    for change, message in (
        ({name: None}, f"{name} is missing"),
        ({name: torch.zeros(3, 3)}, rf"{name} has shape \[3, 3\]"),
        ({"stranger": torch.zeros(1)}, "stranger"),
    ):
        tensors = {k: v for k, v in (good | change).items() if v is not None}
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            build(plan, read_tokenizer(plan), CPU)


@pytest.mark.parametrize("name", ["tiny", "qwen3-vl-2b"])
def test_what_no_file_holds_needs_no_starting_values(name: str) -> None:
    """A skeleton draws none: its buffers are those of a model that libraries have filled."""
    plan = Plan.parse({"model": name, "weights": "random", "device": "cuda"})
    family, tokenizer = family_of(plan.profile), read_tokenizer(plan)
    with init_empty_weights(include_buffers=False):
        filled = dict(family.skeleton(plan.profile, tokenizer).named_buffers())
    bare = skeleton(plan.profile, tokenizer)
    from_files = bare.state_dict().keys()
    alone = {key: value for key, value in bare.named_buffers() if key not in from_files}
    assert alone and all(torch.equal(value, filled[key]) for key, value in alone.items())
