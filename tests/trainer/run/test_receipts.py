"""A lever that a plan names and that does not act is counted, and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from profiles.plan import Plan
from profiles.sizes import GIB
from tests.conftest import tiny_plan
from tests.trainer.model import test_model
from tests.trainer.model.test_model import loss_of
from trainer.batch import Batch
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.segmentation_model import SegmentationModel
from trainer.run.expected import Expected, beside_forecast
from trainer.run.receipts import Receipts
from trainer.run.validation import outcome
from trainer.step import make_optimizer

LEVERS = {
    "quantization": "nf4", "products": "fp8", "checkpointed_layers": 3, "host_layers": 2,
    "host_embeddings": True, "optimizer_state": "8bit",
}  # fmt: skip


def made(plan: Plan) -> tuple[Lisa, Batch]:
    """A model that keeps its encoders, and a batch of pictures that it has encoded."""
    model, batch = test_model.made(plan)
    features = {encoder: dict(model.features(encoder, batch)) for encoder in batch.inputs}
    model.cached = frozenset(features)
    return model, replace(batch, inputs=features)


def receipts(plan: Plan, model: SegmentationModel, batch: object, passes: int = 2) -> Receipts:
    """Of a step of some micro-batches with a model that may be built from another plan."""
    optimizer = make_optimizer(model, plan if plan.device == "cpu" else tiny_plan())
    found = Receipts(plan, model.train())
    with found.looking_at(optimizer):
        for _ in range(passes):
            loss_of(model, batch).backward()  # type: ignore[arg-type]
        optimizer.step()
    return found


def test_every_lever_is_counted_where_it_acts() -> None:
    plan = tiny_plan(**LEVERS)
    model, batch = made(plan)
    both = model.cached
    model.drop_encoders(("mask",))  # as a plan that caches it does
    model.cached = both
    found = receipts(plan.override(["cached_encoders=mask"]), model, batch)
    counted = {row.lever: row.counted for row in found.rows}
    assert counted == {
        "checkpointed_layers": 3, "host_layers": 2, "quantization": "nf4",
        "products": "fp8", "host_embeddings": "True", "mask encoder": "not loaded",
        "vision encoder": "loaded", "optimizer_state": "8bit",
    }  # fmt: skip
    assert found.warnings() == [] and len(found.document()) == len(counted)
    assert not any(layer._forward_pre_hooks for layer in model.decoder_layers)


def test_what_does_not_act_is_said() -> None:
    """The model is built without any lever: the plan's names alone say nothing."""
    model, batch = made(tiny_plan())
    found = receipts(tiny_plan(**LEVERS, cached_encoders=["mask"]), model, batch, passes=1)
    assert set(found.warnings()) == {
        "checkpointed_layers: 3 planned, 0 counted",
        "host_layers: 2 planned, 0 counted",
        "quantization: nf4 planned, none counted",
        "products: fp8 planned, dtype counted",
        "host_embeddings: True planned, False counted",
        "mask encoder: not loaded planned, loaded counted",
    }
    # The optimizer was made from the plan: it is 8-bit indeed.
    assert {row.counted for row in found.rows if row.lever == "optimizer_state"} == {"8bit"}


@pytest.mark.parametrize("works", [True, False])
def test_compiled_graphs_and_kernels_that_stand_in(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes has no kernels for a card here."""
    compile_ = torch.compile
    backend = {"backend": "eager"} if works else {"disable": True}
    monkeypatch.setattr(torch, "compile", lambda run, **rest: compile_(run, **rest, **backend))
    model, batch = made(tiny_plan(quantization="nf4"))
    model.plan_layers(0, compiled=True)
    plan = Plan.parse(tiny_plan().model_dump() | {"device": "cuda", "compile": True,
                                                  "quantization": "nf4"})  # fmt: skip
    monkeypatch.setattr("trainer.run.receipts.without_own_kernel", lambda *_: ["dequantize_4bit"])
    said = receipts(plan, model, batch, passes=1).warnings()
    assert ("compiled graphs: 1 or more planned, 0 counted" in said) is not works
    assert "kernels that stand in: none planned, dequantize_4bit counted" in said


def test_what_a_run_took_stands_beside_what_was_forecast(tmp_path: Path) -> None:
    pool = {"peak_reserved_bytes": 3 * GIB}
    found, said = beside_forecast(Expected(100.0, 2 * GIB), 200.0, pool)
    assert found["forecast"] == {"seconds": 100.0, "pool_bytes": 2 * GIB}
    assert found["measured"] == {"seconds": 200.0, "pool_bytes": 3 * GIB}
    assert said == ["the pool took 3.00 GiB; 2.00 GiB were forecast",
                    "took 3 min; 2 min were forecast"]  # fmt: skip
    assert beside_forecast(Expected(100.0, 4 * GIB), 140.0, pool)[1] == []
    nothing, said = beside_forecast(Expected(), 5.0, {})
    assert nothing["measured"]["pool_bytes"] is None and not said
    summary = {"before": {"images": 0}, "after": {"images": 0}, "best": None, "epochs": 1}
    assert outcome(summary | {"warnings": ["a"]}, tmp_path)[-1] == "warning: a"
    json.dumps(found)
