"""Every memory lever's numerics, on the CPU in fp32 with the tiny model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.plan import Plan
from tests import coarse_lisa
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.model import test_model
from tests.trainer.model.test_model import CPU, gradients, loss_of
from trainer.batch import Batch
from trainer.data.formats.reasonseg import read_split
from trainer.model import build as build_module
from trainer.model.adapters import AdaptedLinear
from trainer.model.build import build, host_layer_places, read_tokenizer, skeleton
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.footprint import DoesNotFit, check_fits, needed_bytes
from trainer.model.layers import frozen, host
from trainer.model.layers.frozen import Int8Linear, Nf4Linear
from trainer.model.layers.host import HostHead, HostLayers, stream_rows
from trainer.model.weights import weight_source
from trainer.step import make_optimizer


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    coarse_lisa.register()
    yield
    coarse_lisa.forget()


@cache
def encoded() -> Batch:
    """Two photographs of different text lengths, encoded once: no lever touches the encoders."""
    model, batch = test_model.made(tiny_plan())
    features = {encoder: dict(model.features(encoder, batch)) for encoder in batch.inputs}
    return replace(batch, inputs=features | {"mask": coarse_lisa.thinned(features["mask"])})


def made(plan: Plan) -> tuple[Lisa, Batch]:
    """A coarse model without encoders, and its batch."""
    plan = plan.override([f"model={coarse_lisa.NAME}", "cached_encoders=mask,vision"])
    return build(plan, read_tokenizer(plan), CPU), encoded()


def reach(expected: dict[str, Tensor], found: dict[str, Tensor], relative: float) -> None:
    """Same names; each gradient within `relative` of the other's norm."""
    assert expected.keys() == found.keys()
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    for name, value in expected.items():
        error = (value - found[name]).norm()
        # A key's bias has no effect on a softmax: its gradient is rounding, measured in the whole.
        assert error <= relative * value.norm() + 0.01 * relative * whole, name


@cache
def resident(quantization: str) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients and masks with all layers on the card."""
    model, batch = made(tiny_plan(quantization=quantization, checkpointed_layers=4))
    found = gradients(model.train(), batch)
    return found, model.eval().predict(batch)


@pytest.mark.parametrize(
    ("quantization", "count"), [("none", 3), ("nf4", 1), ("nf4", 3), ("nf4", 4), ("int8", 2)]
)
def test_host_layers_are_exact(quantization: str, count: int) -> None:
    expected, masks = resident(quantization)
    plan = tiny_plan(quantization=quantization, checkpointed_layers=4, host_layers=count)
    streamed, batch = made(plan)
    streamed.train()
    for _ in range(2):  # the second pass begins with what the first left in the buffers
        found = gradients(streamed, batch)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name
    streamed.eval()
    for _ in range(2):
        assert torch.equal(masks, streamed.predict(batch))


def test_compiled_host_layers_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled layer keeps weights for its backward pass that lie elsewhere in between."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda run, **rest: compile_(run, **rest, backend="aot_eager")
    )
    resident, batch = made(tiny_plan(checkpointed_layers=4, quantization="nf4"))
    streamed, _ = made(tiny_plan(checkpointed_layers=4, host_layers=4, quantization="nf4"))
    streamed.plan_layers(4, compiled=True)
    for model in (resident, streamed):
        model.train()
    for _ in range(2):
        expected, found = gradients(resident, batch), gradients(streamed, batch)
        reach(expected, found, 1e-5)


def test_host_layers_take_two_buffers_and_no_more() -> None:
    model, batch = made(tiny_plan(checkpointed_layers=4, host_layers=4))
    layers = model.host_layers
    assert layers is not None and len(layers.buffers) == 2
    weights = [layer.mlp.up_proj.weight for layer in model.decoder_layers]
    places = [weight.data_ptr() for weight in weights]
    assert places[0] == places[2] != places[1] == places[3]
    gradients(model, batch)
    assert [weight.data_ptr() for weight in weights] == places


def test_a_layer_left_in_the_wrong_buffer_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: without the fetch of the backward pass it does."""
    plan = tiny_plan(checkpointed_layers=4, host_layers=3, quantization="nf4")
    resident, batch = made(tiny_plan(checkpointed_layers=4, quantization="nf4"))
    streamed, _ = made(plan)
    fetch = HostLayers.fetch
    monkeypatch.setattr(
        HostLayers, "fetch", lambda self, n, step: fetch(self, n, step) if step > 0 else None
    )
    for model in (resident, streamed):
        model.train()
    expected, found = gradients(resident, batch), gradients(streamed, batch)
    assert any(not torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("count", "among"), [(1, 4), (3, 4), (4, 4), (5, 32), (32, 32)])
def test_host_layers_are_spread(count: int, among: int) -> None:
    plan = Plan.parse({"model": "7b", "device": "cuda", "checkpointed_layers": among,
                       "host_layers": count, "micro_batch": 1, "accumulation": 1})  # fmt: skip
    places = host_layer_places(plan)
    assert len(set(places)) == count and max(places) < among
    gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows of lisa-tiny's 768 a chunk: eight chunks, the last one short."""
    monkeypatch.setattr(host, "CHUNK_BYTES", 100 * 192 * 4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("train", [["token_rows"], ["mask_decoder", "text_hidden_fcs"]])
def test_host_embeddings_equal_resident_ones(train: list[str]) -> None:
    resident, batch = made(tiny_plan(train=train))
    hosted, _ = made(tiny_plan(train=train, host_embeddings=True))
    torch.testing.assert_close(loss_of(hosted, batch), loss_of(resident, batch), rtol=1e-6, atol=0)
    reach(gradients(resident, batch), gradients(hosted, batch), 1e-5)
    assert torch.equal(resident.predict(batch), hosted.predict(batch))
    states = torch.randn(2, 3, 192)
    head: nn.Module = hosted.llava.lm_head
    torch.testing.assert_close(head(states), resident.llava.lm_head(states))


@pytest.mark.usefixtures("small_chunks")
def test_one_pass_loss_equals_cross_entropy() -> None:
    """Against plain softmax, with huge logits, labels in every chunk and among the rows."""
    torch.manual_seed(0)
    table = torch.randn(768, 192)
    head = HostHead(table, CPU)
    head.train_rows([5, 250, 767])
    assert head.rows is not None
    head.rows.data.normal_()
    hidden = (torch.randn(40, 192) * 3).requires_grad_()
    labels = torch.cat([torch.tensor([5, 250, 767, 0, 766]), torch.randint(0, 768, (35,))])
    loss = head.cross_entropy_sum(hidden, labels)
    (loss * 0.7).backward()
    found = hidden.grad, head.rows.grad
    assert found[0] is not None and found[1] is not None
    plain, rows = hidden.detach().clone().requires_grad_(), head.rows.detach().clone()
    rows.requires_grad_()
    logits = (plain @ table.t()).index_copy(1, head.ids, plain @ rows.t())
    expected = functional.cross_entropy(logits, labels, reduction="sum")
    (expected * 0.7).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0], plain.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], rows.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_chunks")
def test_streamed_rows_are_the_table() -> None:
    table = torch.arange(768 * 192.0).view(768, 192)
    parts = [(start, chunk.clone()) for start, chunk in stream_rows(table, CPU)]
    assert [start for start, _ in parts] == list(range(0, 768, 100))
    assert torch.equal(torch.cat([chunk for _, chunk in parts]), table)


def test_token_rows_equal_whole_embeddings_with_a_frozen_remainder() -> None:
    rows, batch = made(tiny_plan(train=["token_rows"]))
    whole, _ = made(tiny_plan(train=["embeddings"]))
    found, expected = gradients(rows, batch), gradients(whole, batch)
    ids = read_tokenizer(tiny_plan()).new_ids
    for ours, theirs in (
        (f"{Lisa.decoder_at}.embed_tokens.rows", f"{Lisa.decoder_at}.embed_tokens.weight"),
        ("llava.lm_head.rows", "llava.lm_head.weight"),
    ):
        torch.testing.assert_close(found[ours], expected[theirs][ids], rtol=1e-4, atol=1e-7)
    assert loss_of(rows, batch).item() == pytest.approx(loss_of(whole, batch).item(), rel=1e-6)


def test_whole_head_trains_beside_the_embeddings_rows() -> None:
    """The seed's Solution 1: projection layers, [SEG] projection, new rows, output projection."""
    plan = tiny_plan(lora=None, train=["projector", "text_hidden_fcs", "token_rows", "head"])
    model, batch = made(plan)
    found = gradients(model, batch)
    assert "llava.lm_head.weight" in found and "llava.lm_head.rows" not in found
    assert bool(found[f"{Lisa.decoder_at}.embed_tokens.rows"].any())


def nf4_reference(weight: Tensor, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    linear = bnb.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, compute_dtype=dtype, quant_type="nf4"
    )
    linear.weight = bnb.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return linear.to("cpu")


def test_nf4_linear_equals_bitsandbytes() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 192) * 0.02, torch.randn(2, 5, 192)
    ours, theirs = Nf4Linear(weight), nf4_reference(weight, torch.float32)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(other)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)
    error = (y - x @ weight.t()).norm() / (x @ weight.t()).norm()
    assert 0.01 < error < 0.15  # four bits lose about a tenth, and something


def test_int8_linear_is_a_product_with_its_rounded_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 192) * torch.logspace(-6, 2, 96)[:, None]
    weight[3] = 0
    ours = Int8Linear(weight)
    rounded = ours.codes.float() * ours.scales[:, None]
    assert ((rounded - weight).abs() <= 0.501 * ours.scales[:, None]).all()
    x = torch.randn(2, 5, 192, requires_grad=True)
    ours(x).square().sum().backward()
    found, x.grad = x.grad, None
    (x @ rounded.t()).square().sum().backward()
    assert found is not None and x.grad is not None
    assert (found - x.grad).norm() < 1e-5 * x.grad.norm()


@pytest.mark.parametrize(("targets", "count"), [("qv", 2), ("attention", 4), ("all-linear", 7)])
@pytest.mark.parametrize("rank", [4, 64])
def test_lora_reaches_its_targets_alone(targets: str, count: int, rank: int) -> None:
    lora = {"rank": rank, "alpha": 16, "dropout": 0.0, "targets": targets}
    model = build(tiny_plan(lora=lora), read_tokenizer(tiny_plan()), CPU)
    adapted = [name for name, m in model.named_modules() if isinstance(m, AdaptedLinear)]
    assert len(adapted) == count * 4
    assert all("language_model.layers" in name for name in adapted)
    assert {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n} == {rank}


def losses(plan: Plan, steps: int) -> list[float]:
    model, batch = made(plan)
    optimizer = make_optimizer(model, plan)
    model.train()
    found = []
    for _ in range(steps):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_8bit_optimizer_follows_the_curve_of_fp32() -> None:
    full, small = losses(tiny_plan(), 20), losses(tiny_plan(optimizer_state="8bit"), 20)
    assert full != small  # it is another optimizer
    assert full[-1] < 0.6 * full[0]
    # Stated band: within 10 % of the way down, at every step.
    assert max(abs(a - b) for a, b in zip(full, small, strict=True)) < 0.1 * (full[0] - full[-1])


def test_cached_features_are_what_the_encoders_give(tmp_path: Path) -> None:
    """Stored in the plan's dtype: fp32 here, so nothing is lost; bf16 keeps 8 bits."""
    from trainer.data.feature_cache import FeatureCache, encoder_key, fill_cache
    from trainer.data.images import read_image
    from trainer.model.build import FrozenEncoder
    from trainer.model.families import family_of

    item = read_split(PHOTOS, "train", 1)[0]
    for dtype, precision in (("fp32", 0.0), ("bf16", 2**-8)):
        plan = tiny_plan(dtype=dtype)
        model = build(tiny_plan(), read_tokenizer(plan), CPU)
        cache = FeatureCache(tmp_path, encoder_key(plan, "mask", dtype))
        bones = skeleton(plan.profile, read_tokenizer(plan))
        reference = FrozenEncoder(bones, plan, "mask", CPU, weight_source(plan))
        fill_cache(
            cache, plan, "mask", [item.image_path], lambda f=reference: f,
            lambda done, total: None, lambda text: None,
        )  # fmt: skip
        family = family_of(plan.profile)
        shown = family.pixels(read_image(item.image_path), "mask", plan.profile)
        with torch.no_grad():
            online = model.encode("mask", shown)["features"]
        stored = cache.read(item.image_path)["features"]
        error = (stored.float() - online).norm() / online.norm()
        assert error <= 4 * precision, (dtype, float(error))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


FOOTPRINTS = {
    "nf4": {"quantization": "nf4", "cached_encoders": ["mask", "vision"]},
    "online": {"quantization": "none", "dtype": "bf16"},
    "int8": {"quantization": "int8", "lora": None, "train": ["token_rows", "head"]},
    "whole": {"train": ["embeddings"], "optimizer_state": "8bit"},
    "host": {"quantization": "nf4", "host_embeddings": True, "checkpointed_layers": 4,
             "host_layers": 3, "optimizer_state": "8bit"},
}  # fmt: skip


@pytest.mark.parametrize("name", FOOTPRINTS)
def test_needed_bytes_are_those_of_the_built_model(name: str) -> None:
    """Counted without weights, then weighed: storages of the model, gradients and moments."""
    plan = tiny_plan(**FOOTPRINTS[name])
    counted = needed_bytes(plan, read_tokenizer(plan))
    model, _ = test_model.made(plan.override(["cached_encoders="]))
    model.drop_encoders(plan.cached_encoders)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert counted["frozen"] == bytes_of([*frozen, *model.buffers()])
    assert counted["trained"] == counted["gradients"] == bytes_of(trained)
    optimizer = make_optimizer(model, plan)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.dim() and "qmap" not in key
    ]
    assert counted["optimizer"] == bytes_of(moments)
    hosts = [] if model.host_layers is None else list(model.host_layers.host)
    if plan.host_embeddings:
        hosts += [model.llava.lm_head.weight, model.llava.lm_head.weight.clone()]
    assert counted["host"] == bytes_of(hosts)


def test_a_plan_that_cannot_fit_says_what_it_needs_and_what_there_is() -> None:
    plan = Plan.parse({"model": "7b", "weights": "random", "device": "cuda", "quantization": "none",
                       "train": ["embeddings"], "cached_encoders": []})  # fmt: skip
    with pytest.raises(DoesNotFit, match=r"at least 17\.\d+ GiB .* 11\.20 GiB are free\n.*cached_"):
        check_fits(plan, read_tokenizer(plan), round(11.2 * 2**30), 2**40)
    host = plan.override(["train=token_rows", "checkpointed_layers=32", "host_layers=32"])
    with pytest.raises(DoesNotFit, match=r"12\.\d+ GiB in host memory, and 8\.00 GiB"):
        check_fits(host, read_tokenizer(host), 20 * 2**30, 8 * 2**30)
    check_fits(host, read_tokenizer(host), 20 * 2**30, 16 * 2**30)


def test_compiling_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Triton.*\n.*compile=false"):
        build_module.check_compiler()
    monkeypatch.setattr(build_module, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ValueError, match="C compiler"):
        build_module.check_compiler()
    monkeypatch.setenv("CC", sys.executable)
    build_module.check_compiler()


def test_weights_are_quantised_on_the_default_stream_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bitsandbytes takes no other: what was begun before it and comes after it must wait."""
    said: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream("default"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    with frozen._on_default_stream(torch.device("cuda")):
        said.append("quantised")
    assert said == ["default waits for own", "on default", "quantised", "off default",
                    "own waits for default"]  # fmt: skip
    with frozen._on_default_stream(torch.device("cpu")):
        assert len(said) == 5
