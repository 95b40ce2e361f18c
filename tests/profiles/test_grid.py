"""Bytes between the corners: never less than a forecast says, and none outside."""

from __future__ import annotations

import json
from itertools import product
from typing import get_args

import pytest

from advisor.memory.allocator import LARGE_SEGMENT
from advisor.memory.forecast import interpret
from profiles.exchange import bucket_bytes
from profiles.grid import (
    GRID_FILE,
    MICRO_BATCHES,
    PADDING,
    QUESTIONS,
    TEXT_TOKENS,
    Estimate,
    estimate,
    nearest,
    reliefs,
)
from profiles.host_memory import COMPILER_BYTES, timing_bytes
from profiles.models import converted
from profiles.plan import Plan
from profiles.settings import Lora, Quantization
from trainer.rehearse.fake import fake_rehearsal

HOPPER = (9, 0)


def plan(**settings: object) -> Plan:
    usual = {"model": "7b", "device": "cuda", "micro_batch": 4, "accumulation": 2,
             "checkpointed_layers": "all"}  # fmt: skip
    return Plan.parse(usual | settings)


def told(asked: Plan, text: int) -> int:
    masks = asked.questions_per_picture
    return interpret(*fake_rehearsal(asked, text, masks, HOPPER)).tier("pool").bytes


def test_every_model_has_every_corner_of_every_storage() -> None:
    """Fails for a model, a storage or a corner without figures: run benchmarks/grid.py."""
    places = ("model", "quantization", "host_embeddings", "micro_batch", "text_tokens",
              "checkpointed_layers", "host_layers")  # fmt: skip
    corners = list(map(json.loads, GRID_FILE.read_text().splitlines()))
    made = [(c.get("questions_per_picture", 1), *(c[place] for place in places)) for c in corners]
    needed = [
        (questions, model, storage, hosted, micro, text, *relief)
        for questions, model, storage, hosted, micro, text in product(
            QUESTIONS, {corner["model"] for corner in corners}, get_args(Quantization),
            (False, True), MICRO_BATCHES, TEXT_TOKENS,
        )
        for relief in reliefs(model, hosted)
    ]  # fmt: skip
    assert sorted(made) == sorted(needed)  # each once
    for model, storage in product(converted(), get_args(Quantization)):
        asked = Plan.parse({"model": model, "quantization": storage, "device": "cuda"})
        assert estimate(asked, TEXT_TOKENS[-1]) is not None, (model, storage)


# 224: of one question, 300: of three; 560: of Qwen3-VL
@pytest.mark.parametrize("number", [224, 300, 560])
def test_a_corner_is_still_what_a_forecast_says(number: int) -> None:
    """Fails when the step or a library has moved: run benchmarks/grid.py."""
    corner = json.loads(GRID_FILE.read_text().splitlines()[number])
    facts = {"tensors_bytes", "pool_bytes", "host_bytes", "compiled_less_bytes", "text_tokens",
             "frozen_bytes", "trained_bytes"}  # fmt: skip
    asked = Plan.parse({k: v for k, v in corner.items() if k not in facts})
    assert told(asked, corner["text_tokens"]) == pytest.approx(corner["pool_bytes"], rel=1e-3)
    found = estimate(asked, corner["text_tokens"])
    assert found is not None and found.pool_bytes == corner["pool_bytes"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"micro_batch": 2, "checkpointed_layers": 11}, 200),
     ({"micro_batch": 10, "host_embeddings": True, "host_layers": 9}, 333),
     ({"micro_batch": 5, "questions_per_picture": 2, "checkpointed_layers": 20}, 250)],
)  # fmt: skip
def test_between_corners_it_is_a_page_too_little_at_most(
    settings: dict[str, object], text: int
) -> None:
    asked = plan(**settings)
    found = estimate(asked, text)
    exact = told(asked, text)
    assert found is not None
    assert exact - LARGE_SEGMENT <= found.pool_bytes <= 1.06 * exact


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"lora": {"rank": 64, "alpha": 128, "targets": "qv"}, "host_embeddings": True}, 512),
     ({"lora": {"rank": 16, "alpha": 32, "targets": "all-linear"}, "checkpointed_layers": 16,
       "micro_batch": 1, "questions_per_picture": 3}, 300)],
)  # fmt: skip
def test_larger_adapters_are_counted_on_top(settings: dict[str, object], text: int) -> None:
    asked = plan(**settings)
    found, exact = estimate(asked, text), told(asked, text)
    assert found is not None
    assert 0.998 * exact <= found.pool_bytes <= 1.04 * exact
    usual = estimate(plan(**settings | {"lora": Lora()}), text)
    assert usual is not None and found.pool_bytes > 1.01 * usual.pool_bytes
    decoder = asked.profile.decoder
    more = decoder.adapter_values(asked.lora) - decoder.adapter_values(Lora())
    assert found.trained_bytes - usual.trained_bytes == 16 * more


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"accumulation": 2, "processes": 2}, 128), ({"accumulation": 1, "processes": 2}, 128),
     ({"effective_batch": 20, "accumulation": None, "questions_per_picture": 3, "micro_batch": 2,
       "processes": 2, "checkpointed_layers": 11, "allocator": ""}, 300),
     ({"micro_batch": 1, "processes": 4, "nodes": 2, "host_embeddings": True, "host_layers": 9},
      200)],
)  # fmt: skip
def test_of_several_processes_each_takes_its_buckets_too(
    settings: dict[str, object], text: int
) -> None:
    asked = plan(**settings)
    masks, found = asked.questions_per_picture, estimate(asked, text)
    exact = interpret(*fake_rehearsal(asked, text, masks, HOPPER))
    assert found is not None
    pool, host = exact.tier("pool").bytes, exact.tier("host").bytes
    slack = 1.03 if asked.allocator else 1.10
    assert pool - LARGE_SEGMENT <= found.pool_bytes <= slack * pool
    tensors, whole = exact.tier("tensors").bytes, not asked.allocator
    # Gradients that have moved into their buckets are still counted beside them.
    assert (0.99 if whole else 0.997) * tensors <= found.tensors_bytes <= 1.006 * tensors
    assert found.tensors_bytes - one(asked, text).tensors_bytes == bucket_bytes(asked)
    assert found.host_bytes == pytest.approx(host, rel=0.02)


def one(asked: Plan, text: int) -> Estimate:
    """The estimate of a process alone with as large passes."""
    alone = {"processes": 1, "nodes": 1}
    found = estimate(asked.model_copy(update=alone), text)
    assert found is not None
    return found


@pytest.mark.parametrize(("processes", "nodes"), [(1, 1), (4, 2)])
def test_compiling_takes_host_memory_of_each_process(processes: int, nodes: int) -> None:
    """No corner is compiled: without it the advice fitted a host that `check` refused."""
    settings = {"micro_batch": 1, "processes": processes, "nodes": nodes}
    plain, compiled = (estimate(plan(**settings, compile=one), 128) for one in (False, True))
    assert plain is not None and compiled is not None
    positions = 576 + 128 + PADDING
    each = COMPILER_BYTES + timing_bytes(plan(**settings, compile=True), positions)
    more = compiled.host_bytes - plain.host_bytes
    assert more == pytest.approx(processes // nodes * each, 1e-6)


def test_every_lever_moves_it_the_right_way() -> None:
    def pool(text: int = 128, **settings: object) -> int:
        found = estimate(plan(**settings), text)
        assert found is not None
        return found.pool_bytes

    base = pool()
    assert (
        pool(text=512) > base and pool(micro_batch=10) > base and pool(quantization="none") > base
    )
    assert pool(checkpointed_layers=20) > base and pool(allocator="") > base
    assert pool(host_embeddings=True) < base
    assert pool(host_embeddings=True, host_layers=8) < pool(host_embeddings=True)
    assert pool(checkpointed_layers=0, compile=True) < pool(checkpointed_layers=0)
    assert pool(lora={"rank": 4, "alpha": 8, "targets": "qv"}) == base, "needs no more"
    assert pool(model="7b-v1") == base, "a smaller sister"


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"train": ["embeddings"]}, 128), ({"cached_encoders": ["mask"]}, 128),
     ({"logits": "all"}, 128), ({"mask_loss_resolution": 1024}, 128),
     ({"optimizer": "paged_adamw"}, 128), ({"model": "tiny"}, 128),
     ({"micro_batch": MICRO_BATCHES[-1] + 1}, 128), ({}, TEXT_TOKENS[-1] + 1),
     ({"checkpointed_layers": 20, "host_embeddings": True, "host_layers": 3}, 128)],
)  # fmt: skip
def test_outside_there_is_no_figure(settings: dict[str, object], text: int) -> None:
    assert estimate(plan(**settings), text) is None


def test_the_nearest_usual_plan_stands_in() -> None:
    special = plan(logits="all")
    assert estimate(special, 128) is None
    assert nearest(special, 128) == estimate(plan(), 128)
    adapters = {"rank": 64, "alpha": 128, "targets": "all-linear"}
    assert nearest(plan(logits="all", lora=adapters), 128) == estimate(plan(lora=adapters), 128)
