"""The seam for model families, proven by one that lives in a folder of the tests alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from profiles.families import MASK, VISION
from profiles.findings import PlanError
from profiles.models import model_profile, models, reserved_tokens
from profiles.plan import Plan
from profiles.pool_events import EMPTY, stream_of
from tests import toy_family
from tests.conftest import PHOTOS, ROOT
from trainer import adapter_files
from trainer.answer.question import Question
from trainer.answer.segmenter import SILENT, Segmenter
from trainer.answer.trained_model import Trained
from trainer.batch import Batch
from trainer.convert.convert import convert, needed_shapes
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate, image_tokens
from trainer.model.answering import Answering
from trainer.model.build import build, read_tokenizer
from trainer.model.footprint import needed_bytes
from trainer.model.layers.decoder import run_layer
from trainer.model.layers.frozen import frozen_linear
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.trained import GradientCheck, trained_names
from trainer.model.weights import RandomWeights, WeightsError, packaged_folder
from trainer.parallel.accelerator import make_accelerator
from trainer.prompts import Turn
from trainer.rehearse.fake import watch
from trainer.rehearse.fake_answer import GRAPH, fake_answer
from trainer.run.checkpoint import trained_tensors
from trainer.run.feature_caches import prepare_caches
from trainer.run.start_from_adapter import AdapterError, fitting_tensors
from trainer.step import make_optimizer, training_step

CPU = torch.device("cpu")
TOY = {
    "model": "toy", "weights": "random", "device": "cpu", "dtype": "fp32", "quantization": "nf4",
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
    "micro_batch": 2, "effective_batch": 2, "mask_loss_resolution": 32,
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 0, "epochs": 1},
    "tokens": {"max_new_tokens": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def the_toy_is_known() -> Iterator[None]:
    """In these tests alone: others list the families and sizes that there are."""
    toy_family.register()
    yield
    toy_family.forget()


def toy_plan(**settings: object) -> Plan:
    return Plan.parse(TOY | settings)


class Uneven(RandomWeights):
    """Biases are drawn as well."""

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        value = super().get(name, shape, device, dtype)
        drawn = torch.Generator().manual_seed(len(name))
        return torch.randn(shape, generator=drawn) * 0.1 if name.endswith("bias") else value


def made(
    plan: Plan, folder: Path | None = None, source: RandomWeights | None = None
) -> tuple[SegmentationModel, Batch]:
    """The toy, and two photographs that take different numbers of tokens."""
    tokenizer = read_tokenizer(plan)
    items = read_split(PHOTOS, "train")
    images = [item.image_path for item in items]
    accelerator = make_accelerator(plan, None)
    caches = prepare_caches(plan, images, folder or Path(), accelerator, SILENT)
    samples = SampleSet(items, plan, tokenizer, caches, training=False)
    counts = [samples.encoded(n).image_tokens for n in range(len(samples))]
    other = next(n for n, count in enumerate(counts) if count != counts[0])
    batch = collate([samples[0], samples[other]], tokenizer)
    return build(plan, tokenizer, CPU, source or Uneven(plan.seed)), batch


def test_a_toy_is_built_and_trained_cached_and_online(tmp_path: Path) -> None:
    """Losses go down, every listed tensor learns, and cached features change nothing."""
    losses = {}
    for cached in ([], [MASK, VISION]):
        plan = toy_plan(cached_encoders=cached, checkpointed_layers=3, host_layers=1)
        model, batch = made(plan, tmp_path, RandomWeights(plan.seed))  # as the caches have them
        assert len(batch.inputs[VISION]["features" if cached else "patches"]) < 2 * 16
        check = GradientCheck(model, trained_names(model, plan))
        accelerator, optimizer = make_accelerator(plan, None), make_optimizer(model, plan)
        model.train()
        losses[bool(cached)] = [
            training_step(model, [batch], optimizer, plan, accelerator, check).loss
            for _ in range(4)
        ]
        assert check.done
        assert losses[bool(cached)][-1] < losses[bool(cached)][0]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("name", ["toy", "tiny"])
def test_a_layers_weights_and_flops_are_what_torch_counts(name: str) -> None:
    """Grouped key heads and heads of their own width too."""
    plan = toy_plan(model=name, quantization="none", lora=None)
    model, shape = build(plan, read_tokenizer(plan), CPU), plan.profile.decoder
    layer, tokens = model.decoder_layers[0], 7
    hidden = torch.randn(1, tokens, shape.hidden)
    places = torch.arange(tokens).expand(3, 1, -1)
    rope = model.decoder.rotary_emb(hidden, places if name == "toy" else places[0])
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    assert sum(linear.weight.numel() for linear in linears) == shape.layer_weights
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        run_layer(layer, hidden, rope, None)
    # torch counts all of attention, not the causal half.
    products = shape.linear_flops(tokens) + 2 * shape.attention_flops(tokens)
    assert counted.get_total_flops() == products


@pytest.mark.parametrize("hosted", [False, True])
def test_a_tied_head_is_counted_trained_and_kept_once(hosted: bool) -> None:
    """The table with its rows is one matrix, wherever it lives."""
    plan = toy_plan(train=["token_rows"], lora=None, host_embeddings=hosted)
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, CPU)
    assert model.head.weight is model.embedding.weight
    assert model.head.rows is model.embedding.rows
    table, head = model.tables()
    assert trained_names(model, plan) == [table.replace("weight", "rows")]
    assert table in needed_shapes(plan.profile) and head not in needed_shapes(plan.profile)
    once, place = needed_bytes(plan, tokenizer), "host" if hosted else "frozen"
    shape = plan.profile.decoder
    apart = shape.model_copy(update={"tied_head": False})
    models()["toy"] = plan.profile.model_copy(update={"decoder": apart})
    twice = needed_bytes(plan, tokenizer)
    assert twice[place] - once[place] == 800 * 64 * 4
    assert twice["trained"] == 2 * once["trained"] > 0
    models()["toy"] = plan.profile.model_copy(update={"decoder": shape})
    with pytest.raises(PlanError, match="head of toy is its embedding table"):
        toy_plan(train=["head"])


@pytest.mark.parametrize("storage", ["none", "int8", "nf4"])
def test_biases_of_the_decoders_linears_are_kept(storage: str) -> None:
    plan = toy_plan(quantization=storage, cached_encoders=[])
    model, _ = made(plan)
    attention = model.decoder_layers[1].self_attn
    name = f"{model.decoder_at}.layers.1.self_attn.q_proj.bias"
    bias = Uneven(plan.seed).get(name, torch.Size([96]), CPU, torch.float32)
    torch.testing.assert_close(attention.q_proj.base_layer.bias, bias)
    weight, x = torch.randn(96, 64), torch.randn(3, 64, requires_grad=True)
    with_bias, without = (frozen_linear(weight, storage, b)(x) for b in (bias, None))
    torch.testing.assert_close(with_bias, without + bias)
    with_bias.sum().backward()
    assert x.grad is not None


def test_peft_is_given_the_toys_own_names(tmp_path: Path) -> None:
    """Targets, tables and parts as this family calls them; what is written is read again."""
    plan = toy_plan(train=["token_rows", "mask_decoder"])
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, CPU)
    tensors = trained_tensors(model)
    assert plan.lora is not None
    rest = adapter_files.write(tmp_path, plan, plan.lora, tensors, tokenizer.new_ids)
    assert all(name.startswith("mask_decoder.") for name in rest) and rest
    read = adapter_files.read(tmp_path, type(model))
    assert read.keys() | rest.keys() == tensors.keys()
    assert sum(name.endswith("mlp.widen.lora_B.weight") for name in read) == 5
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert config.trainable_token_indices == {"embed_tokens": tokenizer.new_ids}
    fitting_tensors(tmp_path, plan, model, tokenizer.new_ids)
    (tmp_path / "adapter_config.json").write_text(
        (tmp_path / "adapter_config.json").read_text().replace('"r": 4', '"r": 8')
    )
    with pytest.raises(AdapterError, match=r"--lora-r 8 .*lora.targets=all-linear"):
        fitting_tensors(tmp_path, plan, model, tokenizer.new_ids)


def test_a_published_toy_is_converted(tmp_path: Path) -> None:
    """With its own tokenizer, a head that is in no file, and a mask head that starts afresh."""
    source, names = tmp_path / "published", needed_shapes(model_profile("toy"))
    drawn = RandomWeights(7)
    tensors = {
        name: drawn.get(name, shape, CPU, torch.float32)
        for name, shape in names.items()
        if not name.startswith("to_prompts.")
    }
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    theirs = Tokenizer.from_file(str(packaged_folder() / "tokenizer.json"))
    theirs.save(str(source / "tokenizer.json"))
    with pytest.raises(WeightsError, match="has no <end>"):
        convert([source], tmp_path / "none", "toy", SILENT.line)
    theirs.add_special_tokens(["<end>"])
    theirs.save(str(source / "tokenizer.json"))
    report = convert([source], tmp_path / "toy", "toy", SILENT.line)
    assert report.initialised == ["to_prompts.weight", "to_prompts.bias"]
    assert list(report.tokens_added) == ["<picture>"]
    plan = toy_plan(weights=str(tmp_path / "toy"), lora=None, quantization="none")
    tokenizer = read_tokenizer(plan)
    assert (
        tokenizer.encode([Turn("<image>\nWHAT?", None)]).input_ids
        == tokenizer.encode([Turn("<image>\nwhat?", None)]).input_ids
    )
    model = build(plan, tokenizer, CPU)
    assert model.head.weight is model.embedding.weight
    name = f"{model.decoder_at}.layers.3.mlp.widen.weight"
    torch.testing.assert_close(model.get_parameter(name), tensors[name].bfloat16().float())
    assert {"<end>", "<picture>", "</s>"} <= set(reserved_tokens())


def test_pictures_positions_layer_inputs_and_masks_reach_the_result() -> None:
    """Each of the family's ways in changes what comes out; of three masks the best is taken."""
    plan = toy_plan(cached_encoders=[], lora=None)
    model, batch = made(plan)
    model.eval()
    with torch.no_grad():
        states = model.hidden_states(batch)
        assert model.positions(batch, 0, batch.input_ids.shape[1]).shape[0] == 3
        seen = batch.inputs[VISION]
        turned = batch.inputs | {VISION: seen | {"grid": seen["grid"].flip(1)}}
        swapped = replace(batch, inputs=turned)
        assert not torch.allclose(model.hidden_states(swapped), states)
        given, model.layer_inputs = model.layer_inputs, lambda ids, seen: {}
        assert not torch.allclose(model.hidden_states(batch), states)
        model.layer_inputs = given
        # The head reads behind the last norm, the masks before it.
        loss, masks = model.answer_loss(states, batch), model.decode_masks(states, batch)
        torch.testing.assert_close(model.answer_loss(2 * states, batch), loss)
        assert not torch.allclose(model.decode_masks(2 * states, batch), masks)
        # The state AT [SEG] prompts its mask.
        changed = states.clone()
        owner, place = batch.segs.unbind(1)
        changed[owner, place - 1] += 1
        torch.testing.assert_close(model.decode_masks(changed, batch), masks)
        changed[owner, place] += 1
        assert not torch.allclose(model.decode_masks(changed, batch), masks)
        prompts = model.prompts_of(states[owner, place])
        features = {name: t[owner] for name, t in model.features(MASK, batch).items()}
        candidates, scores = model.decode(prompts, features)
        assert prompts.shape[1] == 2 and candidates.shape[1] == 3
        best = torch.stack([c[s.argmax()] for c, s in zip(candidates, scores, strict=True)])
        torch.testing.assert_close(masks, best)
        features["fine"] = features["fine"] + 1
        assert not torch.allclose(model.masks_of(prompts, features), masks)


def test_what_is_kept_of_the_past_answers_as_reading_all_again_does() -> None:
    """Later tokens go on at the right 3-D position."""
    model, batch = made(toy_plan(cached_encoders=[]))
    model.eval()
    one = batch.input_ids.shape[1] - 12
    ids = batch.input_ids[:1, :one]
    grid = batch.inputs[VISION]["grid"][:1]
    count = int(grid.prod())
    shown = {"patches": batch.inputs[VISION]["patches"][:count], "grid": grid}
    asked = replace(batch, input_ids=ids, inputs=batch.inputs | {VISION: shown})
    (token, _), (_, state) = islice(Answering(model, one + 1).greedy(asked, [0]), 2)
    with torch.no_grad():
        whole = replace(asked, input_ids=torch.cat([ids, token[None]], 1))
        torch.testing.assert_close(state, model.hidden_states(whole)[:, -1])


def test_a_toy_is_rehearsed_without_a_gpu() -> None:
    """Repeated layers leave the trace of whole ones, each with its own input."""
    plan = toy_plan(dtype="bf16", cached_encoders=[], checkpointed_layers=3)
    short, whole = (watch(plan, (40, 40), 1, 0, extend).trace for extend in (True, False))
    assert short.peaks() == whole.peaks()
    measurement, events = fake_answer(toy_plan(), 40)
    recorded = [size for block, size in events if stream_of(block) == GRAPH]
    assert recorded and sum(recorded) >= 0
    assert events.count(EMPTY) == len(measurement.plan.cached_encoders)
    hosted = fake_answer(toy_plan(host_layers=1, checkpointed_layers=5), 40)[1]
    assert all(stream_of(block) != GRAPH for block, _ in hosted)
    assert f"{VISION} encoder" in measurement.phases and "answer" in measurement.phases


def test_a_toy_is_forecast_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from advisor.memory.card import Card
    from advisor.memory.forecast import forecast
    from advisor.memory.worst_sample import Worst

    here = os.environ.get("PYTHONPATH", "")
    paths = [str(toy_family.HERE), str(ROOT), *([here] if here else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    plan = toy_plan(device="cuda", dtype="bf16", cached_encoders=[])
    found = forecast(plan, Worst(40, 1, None), Card(cap_bytes=8 << 30), tmp_path)
    assert found.verdict == "FITS", found.reason
    assert found.tier("tensors").bytes > 0 and found.live_at_peak["encoders"] > 0
    request.getfixturevalue("rehearsals_here")  # one child is enough
    caching, room = toy_plan(device="cuda", dtype="bf16"), (3 << 20) - 1
    found = forecast(caching, Worst(40, 1, None), Card(cap_bytes=room), tmp_path)
    assert found.verdict == "OOM" and "of 0.00 GiB" in found.reason


def test_a_toy_segments(tmp_path: Path) -> None:
    """A question to a mask of the picture's own size, prompted by the state at [SEG]."""
    plan = toy_plan(train=["token_rows", "mask_decoder"])
    images = [item.image_path for item in read_split(PHOTOS, "train")]
    # One that takes fewer tokens than the most.
    image = next(path for path in images if image_tokens(path, plan) < 16)
    segmenter = Segmenter(Trained(plan, None), [image], tmp_path)
    model, question = segmenter.model, Question(image, "the cat", is_sentence=False)
    with torch.no_grad():
        state = model.hidden_states(segmenter._batch(image, *segmenter._rows([question])))[0, -1]
        head, norm = model.head, model.decoder.norm
        norm.weight.neg_()  # which only what reads behind the norm sees
        head.rows[0] = state * -100  # [SEG] is the first of the new tokens
    answer = segmenter.ask(question)
    assert answer.text.startswith("[SEG]") and len(answer.masks) >= 1
    assert answer.mask.shape == segmenter_size(image)


def segmenter_size(image: Path) -> tuple[int, ...]:
    from trainer.data.images import read_image

    return read_image(image).shape[:2]
