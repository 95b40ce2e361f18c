"""Each order of preference by its own measure, on cards of every size."""

from functools import cache
from pathlib import Path

import pytest
from pydantic import ValidationError

from advisor.advice import Advice
from advisor.choice.candidate import Candidate, Scales, Speed
from advisor.choice.candidates import Family
from advisor.choice.preference import fastest_of, preferred, why_not
from advisor.choice.rank import Limits, choose
from advisor.machine.budget import Bytes, budget_of, what_if_gpu
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from profiles.gpus import gpus
from profiles.plan import Plan
from profiles.preferences import PREFERENCES
from profiles.sizes import GIB
from profiles.tested import read_table

TABLE = read_table(Path("/nonexistent/tested.jsonl"))
SIZES = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 32, 40, 48, 64, 80)
PRECISION = ("nf4", "int8", "none")


def candidate(needs: float, speed: float, **settings: object) -> Candidate:
    plan = Plan.parse({"model": "7b", "device": "cuda", "checkpointed_layers": "all"} | settings)
    return Candidate(
        plan=plan, needs=Bytes(bytes=round(needs * GIB), basis="forecast", source="a test"),
        host_bytes=GIB, speed=Speed(samples_per_second=speed, basis="forecast", source="a test"),
        verdict="FITS",
    )  # fmt: skip


NF4 = candidate(6.9, 1.27, quantization="nf4")
SMALL = candidate(4.2, 0.99, quantization="nf4")
INT8 = candidate(6.9, 1.16, quantization="int8")
STREAMED = candidate(
    5.0, 1.40, quantization="none", host_layers=24, host_embeddings=True
)  # faster than any card is, to tell the orders apart


@pytest.mark.parametrize(
    ("prefer", "best"),
    [("usual", INT8), ("speed", STREAMED), ("precision", STREAMED), ("headroom", SMALL)],
)
def test_each_order_has_its_own_best(prefer, best):
    everyone = [NF4, SMALL, INT8, STREAMED]
    fastest = fastest_of(everyone)
    assert fastest == 1.27, "plans on the card compete with each other"
    assert max(everyone, key=lambda one: preferred(prefer, one, fastest)) is best


def test_precision_may_cost_a_tenth_of_the_speed_and_no_more():
    slower = candidate(6.9, 1.14, quantization="int8")  # 90 % of 1.27 is 1.143
    assert preferred("usual", NF4, 1.27) > preferred("usual", slower, 1.27)
    assert preferred("usual", INT8, 1.27) > preferred("usual", NF4, 1.27)


def test_no_plan_that_cannot_run_leaves_a_choice():
    """A family copies its plans unchecked, and few of the many that are weighed become records."""
    family = Family(NF4.plan, ((3, 4),))  # four layers in host memory, three of them checkpointed
    scales = Scales(lambda plan: (NF4.needs, NF4.host_bytes), lambda plan: NF4.speed)
    budget = budget_of(what_if_gpu(80 * GIB), Machine(), 64 * GIB)
    for best_alone in (True, False):
        with pytest.raises(ValidationError, match="1 validation error for Candidate\nplan"):
            choose([family], "usual", scales, Limits(budget), best_alone)


def test_what_speaks_against_a_plan_is_true_of_it():
    assert why_not(STREAMED, NF4) == "streams 24 layers from host memory"
    assert why_not(NF4, INT8) == "rounds the base weights to nf4"
    assert why_not(SMALL, NF4) == "22% slower"
    assert "slower" not in why_not(NF4.model_copy(update={"needs": INT8.needs}), NF4)


@cache
def advice_for(size_gib: int, model: str, prefer: str) -> Advice:
    target = Target(vram_bytes=size_gib * GIB)
    return advise(Machine(), model, (), target, evidence=Evidence(TABLE), prefer=prefer)


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("model", ["7b", "13b", "qwen3-vl-4b"])
def test_a_larger_card_never_gets_a_worse_plan(model, prefer):
    sizes = SIZES if model == "7b" else SIZES[::2]
    found = [advice_for(size, model, prefer) for size in sizes]
    fitting = [one for one in found if one.verdict == "FITS"]
    assert len(fitting) >= len(sizes) - 4
    for smaller, larger in zip(fitting, fitting[1:], strict=False):
        here, there = smaller.considered[0], larger.considered[0]
        precision = [PRECISION.index(one.plan.quantization) for one in (here, there)]
        speed = [one.speed.samples_per_second for one in (here, there)]
        on_card = [not one.plan.host_layers for one in (here, there)]
        least = 0.98 * speed[0]  # forecasts that differ by less are equal
        measures = {
            "speed": speed[1] >= least,
            "precision": precision[1] > precision[0]
            or (precision[1] == precision[0] and (on_card[1] > on_card[0] or speed[1] >= least)),
            "headroom": on_card[1] > on_card[0] or there.needs.bytes <= here.needs.bytes,
            "usual": on_card[1] > on_card[0]
            or (on_card[1] == on_card[0] and (precision[1] > precision[0] or speed[1] >= least)),
        }
        assert measures[prefer], (smaller.summary, larger.summary)
        assert prefer == "headroom" or on_card[1] >= on_card[0] or prefer != "usual"


def test_every_cards_usual_plan_stays_on_it_where_any_plan_can():
    one_of_each = {(card.memory_gb, card.compute_capability): card for card in gpus().values()}
    for card in one_of_each.values():
        advice = advise(Machine(), "7b", (), Target(card=card), evidence=Evidence(TABLE))
        if advice.verdict != "FITS" or not advice.plan.host_layers:
            continue
        pinned = advise(
            Machine(), "7b", ("host_layers=0",), Target(card=card), evidence=Evidence(TABLE)
        )
        assert pinned.verdict != "FITS", card.key


@pytest.mark.parametrize("size", [6, 8, 12, 16, 24])
def test_the_alternatives_are_what_the_other_orders_choose(size):
    usual = advice_for(size, "7b", "usual")
    for order in PREFERENCES:
        other = advice_for(size, "7b", order)
        assert other.prefer == order and other.plan is not None
        expected = usual.alternatives.get(order, usual.considered[0])
        assert other.plan == expected.plan and other.needs == expected.needs
        assert ("--prefer" in other.command) == (order != "usual")


def test_named_memory_of_the_host_lifts_what_may_be_streamed():
    sizes = [None, 64 * GIB]
    targets = [Target(vram_bytes=8 * GIB, ram_bytes=size) for size in sizes]
    assumed, rich = (
        advise(Machine(), "7b", (), one, evidence=Evidence(TABLE), prefer="precision")
        for one in targets
    )
    assert assumed.budget.host.bytes == 8 * GIB and assumed.plan.quantization == "int8"
    assert rich.plan.quantization == "none" and rich.host_bytes > 8 * GIB
    assert "--ram 64GiB" in rich.command and "--ram" in assumed.budget.host.source


def test_no_more_than_half_of_the_memory_is_pinned():
    """Whatever is free: Windows allows no more, and elsewhere the system stalls."""
    plenty = {"host_total_bytes": 16 * GIB, "host_available_bytes": 16 * GIB}
    gpu = Target(vram_bytes=8 * GIB).gpu
    machine = Machine(gpus=(gpu,), **plenty)
    pins = ("quantization=none", "host_layers=24", "host_embeddings=true")
    advice = advise(machine, "7b", pins, evidence=Evidence(TABLE))
    assert advice.verdict == "OOM"
    assert "would be pinned, 8.00 GiB, half of the machine's memory, may be" in advice.summary
    assert advice.host_bytes < advice.budget.host.bytes, "the process itself would fit"
