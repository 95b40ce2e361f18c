"""What compiled layers save, against measured steps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from profiles.compiled import saved_bytes
from profiles.grid import estimate
from profiles.plan import Plan
from tests.conftest import ROOT


def plan_of(checkpointed: int, dropout: float, targets: str) -> Plan:
    lora = {"rank": 8, "alpha": 16, "dropout": dropout, "targets": targets}
    return Plan.parse({"model": "7b", "device": "cuda", "compile": True, "lora": lora,
                       "checkpointed_layers": checkpointed})  # fmt: skip


@pytest.mark.parametrize(
    ("checkpointed", "dropout", "targets", "saved"),
    [  # in hidden channels of 2 bytes, a layer; read off the rows named in profiles.compiled
        (32, 0.05, "qv", 4.69), (32, 0.05, "attention", 1.69), (32, 0.05, "all-linear", -7.03),
        (0, 0.05, "qv", 4.69), (0, 0.05, "all-linear", 4.69), (0, 0.0, "qv", 6.69),
        (0, 0.0, "attention", 9.69), (0, 0.0, "all-linear", 13.03),
    ],
)  # fmt: skip
def test_a_layer_saves_what_was_measured(
    checkpointed: int, dropout: float, targets: str, saved: float
) -> None:
    plan = plan_of(checkpointed, dropout, targets)
    hidden, layers = plan.profile.decoder.hidden, plan.profile.decoder.layers
    forward, backward = saved_bytes(plan)
    assert backward / (2 * hidden * (1 if checkpointed else layers)) == pytest.approx(saved, 0.005)
    assert forward == (0 if checkpointed else backward)


@pytest.mark.parametrize("targets", ["qv", "attention", "all-linear"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_recomputing_a_layer_more_never_saves_more(targets: str, dropout: float) -> None:
    saved = [saved_bytes(plan_of(n, dropout, targets))[0] for n in range(33)]
    assert saved == sorted(saved, reverse=True)


def test_the_grid_knows_what_adapters_on_every_linear_take() -> None:
    """A measured step of 7B: without that its estimate would be 5 % too low."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (ROOT / "benchmarks" / "fp8.jsonl").read_text().splitlines()
    ]
    measured = next(row["measurement"] for row in rows if row.get("step") == "7b-linears")
    found = estimate(Plan.parse(measured["plan"]), measured["text_tokens"][1])
    assert found is not None
    assert 0.995 < found.tensors_bytes / measured["peak_allocated_bytes"] < 1.05
