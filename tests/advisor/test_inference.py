"""Which plan answers on a card: levers one after the other, until a forecast fits."""

from __future__ import annotations

from typing import Any

import pytest

from advisor import inference as answering
from advisor.inference import NoRoom, fitting, worst_question
from advisor.machine.gpu import Gpu, Machine
from advisor.memory.card import Card
from advisor.memory.forecast import Forecast, Tier
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan

GIB = 2**30
WHOLE = Plan.parse({"model": "7b", "device": "cuda", "quantization": "none", "lora": None,
                    "train": ["mask_decoder"]})  # fmt: skip
TRAINED = Plan.parse({"model": "7b", "device": "cuda", "quantization": "nf4"})


def machine(free_gib: float) -> Machine:
    gpu = Gpu(index=0, name="a card", total_bytes=24 * GIB, free_bytes=round(free_gib * GIB),
              compute_capability=(8, 9))  # fmt: skip
    return Machine(gpus=(gpu,), host_available_bytes=64 * GIB)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, int]]:
    """The levers of every plan that was forecast; layers take what their weights do, and 1 GiB."""
    found: list[tuple[str, bool, int]] = []

    def forecast(plan: Plan, worst: Worst, card: Card) -> Forecast:
        assert worst.answering and (worst.text_tokens, worst.image_tokens) == (128, 320)
        assert card.compute_capability == (8, 9) and card.cap_bytes is not None
        found.append((plan.quantization, plan.host_embeddings, plan.host_layers))
        pool = round(answering._weights(plan) + GIB)
        fits = pool <= card.cap_bytes
        return Forecast(plan=plan, verdict="FITS" if fits else "OOM", reason="so many GiB",
                        compute_capability=(8, 9), text_tokens=128, masks=1,
                        tiers=(Tier(name="pool", bytes=pool, source=""),))  # fmt: skip

    monkeypatch.setattr(answering, "forecast", forecast)
    return found


@pytest.mark.parametrize(
    ("free", "plan", "levers"),
    [
        (20, WHOLE, ("none", False, 0)),
        (9, WHOLE, ("int8", False, 0)),
        (5.5, WHOLE, ("nf4", False, 0)),
        (5.5, TRAINED, ("nf4", False, 0)),
        (4, TRAINED, ("nf4", True, 16)),
    ],
)
def test_the_least_lever_that_fits(
    free: float, plan: Plan, levers: tuple[str, bool, int], tried: list[Any]
) -> None:
    fit = fitting(plan, plan is WHOLE, worst_question(90, 257), machine(free), lambda line: None)
    assert (fit.plan.quantization, fit.plan.host_embeddings, fit.plan.host_layers) == levers
    assert fit.line().startswith("FITS: " + {"none": "bf16"}.get(levers[0], levers[0]) + " base")
    assert tried[-1] == levers
    Plan.parse(fit.plan.model_dump(mode="json"))  # one that can run


def test_no_room_and_no_card_say_so(tried: list[Any]) -> None:
    with pytest.raises(NoRoom, match="does not answer within .* on this card: the smallest way"):
        fitting(TRAINED, False, worst_question(90, 257), machine(1.2), lambda line: None)
    assert tried[-1] == ("nf4", True, 32)
    with pytest.raises(NoRoom, match="no GPU with a known memory"):
        fitting(TRAINED, False, worst_question(90, 257), Machine(), lambda line: None)
