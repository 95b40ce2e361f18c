"""Plans for several cards and machines: the worst card decides, and what more cards bring."""

from __future__ import annotations

from io import StringIO

import pytest

from advisor.advice import Advice
from advisor.cost.duration import REASON_SEG, duration_of
from advisor.cost.several import Planned, numbers, several
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from advisor.report.findings import BATCH
from advisor.report.summary import SCREEN_LINES
from advisor.report.text import PlainConsole, print_text
from advisor.request import must_have_cards
from profiles.exchange import exchange, nccl_bytes
from profiles.findings import PlanError
from profiles.gpus import find_gpu, gpus
from profiles.host_memory import pinned_bytes, shared_host_bytes
from profiles.plan import Plan
from profiles.sizes import GIB
from profiles.text import time_text
from tests.advisor.test_preflight import _live

TWO = ("processes=2", "nodes=1")
NEW, OLD = "NVIDIA GeForce RTX 3090", "Tesla T4"


def card(index: int, name: str, total_gib: float, free_gib: float, age: tuple[int, int]) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name=name, total_bytes=round(total_gib * GIB),
               free_bytes=round(free_gib * GIB), compute_capability=age)  # fmt: skip


def machine(*cards: Gpu, host_gib: int = 64) -> Machine:
    return Machine(gpus=cards, host_total_bytes=host_gib * GIB,
                   host_available_bytes=host_gib * GIB)  # fmt: skip


EQUAL = machine(card(0, NEW, 24, 23.5, (8, 6)), card(1, NEW, 24, 22.0, (8, 6)))
UNEQUAL = machine(card(0, OLD, 15, 14.5, (7, 5)), card(1, NEW, 24, 23.5, (8, 6)),
                  card(2, NEW, 24, 23.0, (8, 6)))  # fmt: skip


def asked(where: Machine = EQUAL, *overrides: str, target: Target | None = None) -> Advice:
    return advise(where, "7b", overrides, target, evidence=Evidence.shipped())


def test_the_card_with_the_least_free_memory_decides_for_both() -> None:
    one, two = asked(), asked(EQUAL, *TWO)
    assert one.gpu is not None and one.gpu.index == 0
    assert two.gpu is not None and two.gpu.index == 1 and two.plan is not None
    assert one.budget is not None and two.budget is not None
    # Less is free, and NCCL takes its part of that.
    context = two.budget.context.bytes - one.budget.context.bytes
    assert context == nccl_bytes(two.plan) == exchange().nccl_bytes
    assert exchange().nccl_source in two.budget.context.source
    assert (two.plan.processes, two.plan.nodes) == (2, 1) and two.verdict == "FITS"
    assert two.summary.startswith(f"7b on 2 x {NEW}: ")
    assert two.command == ("lisa-train --auto --model 7b --gpus 2 --weights FOLDER --data-dir DIR")
    assert "CUDA_VISIBLE_DEVICES" not in two.environment, "all cards of the machine"
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "GPU-0"


def test_unequal_cards_run_what_the_worst_of_them_can() -> None:
    two, three = asked(UNEQUAL, *TWO), asked(UNEQUAL, "processes=3", "nodes=1")
    assert two.plan is not None and three.plan is not None
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2", "the best two are alike"
    assert (two.plan.dtype, three.plan.dtype) == ("bf16", "fp16"), "a T4 has no bf16"
    assert three.budget is not None and three.budget.free.bytes == round(14.5 * GIB)
    assert three.duration is not None and "T4" in three.duration.card
    notes = [str(note) for note in three.findings if note.where == "GPUs"]
    assert len(notes) == 1 and "T4" in notes[0] and "least free memory" in notes[0]
    assert not [note for note in two.findings if note.where == "GPUs"]


def test_more_cards_than_there_are_is_an_error() -> None:
    with pytest.raises(PlanError, match="shows 2 usable GPUs"):
        must_have_cards(EQUAL, ["processes=3", "nodes=1"])
    must_have_cards(EQUAL, ["processes=4", "nodes=2"])  # two in each of two machines
    must_have_cards(EQUAL, ["processes=3", "device=cpu"])
    must_have_cards(Machine(), ["processes=3"])
    assert asked(EQUAL, "processes=4", "nodes=2").verdict == "FITS"
    # A rank of a launcher shows its own card alone.
    ranks = asked(machine(EQUAL.gpus[1]), "processes=2")
    assert ranks.verdict == "FITS" and "CUDA_VISIBLE_DEVICES" not in ranks.environment
    assert ranks.plan == asked(EQUAL, "processes=2").plan


def test_a_batch_that_cannot_be_shared_becomes_or_names_the_next_that_can() -> None:
    target = Target(card=find_gpu("RTX 3090"))
    usual, thrice = asked(EQUAL, "processes=8", target=target), "questions_per_picture=3"
    assert usual.verdict == "FITS" and usual.plan is not None and usual.plan.effective_batch == 24
    first = usual.findings[0]
    assert first.where == BATCH and "24" in first.what and "effective_batch=24" in usual.command
    assert not first.got, "nobody typed 24"
    plan = asked(EQUAL, "processes=16", target=target).plan
    assert plan is not None and plan.effective_batch == 32, "the next, with one question a picture"
    for settings, batch in (((thrice,), 24), (("questions_per_picture=1", "micro_batch=2"), 32)):
        plan = asked(EQUAL, "processes=8", *settings, target=target).plan
        assert plan is not None and plan.effective_batch == batch
    with pytest.raises(PlanError, match="one question a picture all must get the same") as error:
        asked(EQUAL, *TWO, "effective_batch=3", target=target)
    assert "effective_batch=4" in str(error.value)
    with pytest.raises(PlanError, match="processes: .*64"):
        asked(EQUAL, "processes=100", target=target)
    fixed = asked(EQUAL, "processes=8", "effective_batch=24", target=target)
    assert fixed.verdict == "FITS"
    uneven = asked(EQUAL, "processes=3", target=target).plan
    assert uneven is not None and uneven.effective_batch == 20, "seven rows for three processes"


def test_windows_has_no_nccl() -> None:
    target = Target(card=find_gpu("RTX 3090"), windows=True)
    with pytest.raises(PlanError, match="(?s)NCCL.*WSL 2"):
        asked(EQUAL, *TWO, target=target)
    assert asked(EQUAL, target=target).verdict == "FITS"
    here = EQUAL.model_copy(update={"platform": "windows"})
    assert asked(here).several is None, "two cards there bring nothing"


def test_host_memory_is_that_of_all_processes_with_one_copy_of_what_lives_there() -> None:
    small = Target(vram_bytes=8 * GIB, ram_bytes=64 * GIB)
    pinned = "host_embeddings=true", "quantization=nf4", "micro_batch=1", "checkpointed_layers=all"
    one, two = (asked(EQUAL, *pinned, f"processes={n}", target=small) for n in (1, 2))
    assert one.host_bytes and two.host_bytes and one.plan is not None and two.plan is not None
    shared = shared_host_bytes(one.plan)
    assert pinned_bytes(two.plan) - shared == 2 * (pinned_bytes(two.plan.of_one_process) - shared)
    assert 1.9 * (one.host_bytes - shared) < two.host_bytes - shared < 2 * one.host_bytes - shared
    narrow = Target(vram_bytes=8 * GIB, ram_bytes=10 * GIB)
    refused = asked(EQUAL, *pinned, "processes=4", target=narrow)
    assert refused.verdict == "OOM" and "host memory" in refused.summary


def shared(plan: Plan, key: str, *numbers: int) -> list[Planned]:
    return [Planned(plan.override([f"processes={n}"]), gpus()[key]) for n in numbers]


def test_more_cards_are_as_fast_as_their_rows_come_out_even() -> None:
    plan = Plan.parse({"model": "7b", "device": "cuda", "micro_batch": 2, "processes": 4,
                       "accumulation": 2, "effective_batch": 16})  # fmt: skip
    profile = gpus()["rtx-3090-24gb"]
    told = several(shared(plan, "rtx-3090-24gb", 1, 2, 4))
    assert told is not None and [row.cards for row in told.rows] == [1, 2, 4]
    assert told.rows[0].efficiency == 1 and told.rows[0].exchange_seconds == 0
    for row in told.rows[1:]:
        assert row.exchange_seconds > 0 and 0.95 < row.efficiency < 1
        assert row.seconds < told.rows[0].seconds
    last = told.rows[-1]
    assert last.samples_per_second == pytest.approx(16 / last.step_seconds)
    assert last.seconds == pytest.approx(duration_of(plan, profile, REASON_SEG).seconds)
    assert told.worth == 4 and told.basis == "forecast" and "assumed" in told.link
    assert several(shared(plan, "rtx-3090-24gb", 1)) is None
    assert several(shared(plan, "rtx-3090-24gb", 2, 4)) is None, "with what would they compare?"
    assert [numbers(most) for most in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


def test_cards_that_gain_nothing_are_said_to() -> None:
    """Some pictures, one epoch: most of the time is the start, the same on any number of cards."""
    plan = Plan.parse({"model": "7b", "device": "cuda", "effective_batch": 8, "micro_batch": 1,
                       "schedule": {"epochs": 1}})  # fmt: skip
    few = REASON_SEG.model_copy(update={"train_pictures": 4, "val_pictures": 1,
                                        "epoch_questions": 4, "val_questions": 1})  # fmt: skip
    told = several(shared(plan, "h100-sxm-80gb", 1, 2, 4, 8), few)
    assert told is not None and told.worth == 1


def test_each_number_of_cards_is_compared_by_its_own_best_plan() -> None:
    """NCCL leaves less room on each of two RTX 3060s, so one alone is faster than half of them."""
    target = Target(card=gpus()["rtx-3060-8gb"])
    one, two = asked(EQUAL, target=target), asked(EQUAL, *TWO, target=target)
    assert two.several is not None and one.duration is not None and two.duration is not None
    alone, both = two.several.rows
    assert (alone.seconds, both.seconds) == (one.duration.seconds, two.duration.seconds)
    assert alone.best and both.efficiency < 0.95
    screen = " ".join(shown(two).split())
    assert f"1 card {time_text(alone.seconds)}, 0.59 questions/s; 2 cards " in screen
    assert f"({both.efficiency:.0%} each)" in screen
    # Of a machine with two cards, one is asked about: two have the plan that --gpus 2 would get.
    here, pair = asked(EQUAL), asked(EQUAL, *TWO)
    assert here.several is not None and pair.duration is not None
    assert here.several.rows[1].seconds == pair.duration.seconds


def test_beyond_the_grid_the_advised_plan_itself_is_shared() -> None:
    """No other is known there without forecasts, and those are not made for a comparison."""
    forecast: list[tuple[Plan, int | None]] = []
    two = advise(EQUAL, "7b", (*TWO, "logits=all"), live=_live(1.0, forecast),
                 evidence=Evidence.shipped())  # fmt: skip
    assert two.several is not None and [row.best for row in two.several.rows] == [False, True]
    assert "1 card with this plan " in shown(two) and "2 cards with this" not in shown(two)
    assert {plan.processes for plan, _ in forecast} == {2}


def test_a_machine_of_two_cards_says_what_two_would_bring() -> None:
    one = asked()
    assert one.plan is not None and one.plan.processes == 1
    assert one.several is not None and [row.cards for row in one.several.rows] == [1, 2]
    alone = asked(machine(EQUAL.gpus[0]))
    assert alone.several is None
    screen = shown(one)
    assert "cards" in screen and "--gpus 2 plans for all of them" in screen
    assert asked(EQUAL, target=Target(vram_bytes=24 * GIB)).several is None


def test_a_screen_without_room_leaves_to_why_what_can_wait() -> None:
    advice = asked(EQUAL, "processes=4", "nodes=2", target=Target(card=gpus()["gtx-1070-8gb"]))
    assert advice.duration is not None and "rougher" in shown(advice)
    asked_for = {"hours": 2.0, "price": 9.0, "price_per_hour": 1.0, "epochs_within": 4}
    long = advice.duration.model_copy(update=asked_for)
    screen = shown(advice.model_copy(update={"duration": long}))
    assert len(screen.splitlines()) <= SCREEN_LINES
    assert "rougher" not in screen and "4 epochs cost" in screen and "each)" in screen


def shown(advice: Advice) -> str:
    console = PlainConsole(width=80, file=StringIO(), force_terminal=False)
    print_text(advice, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", ["rtx-3090-24gb", "rtx-3060-12gb", "h100-sxm-80gb"])
@pytest.mark.parametrize("group", [TWO, ("processes=4", "nodes=2")])
def test_the_first_screen_has_room_for_the_cards(name: str, group: tuple[str, ...]) -> None:
    advice = asked(EQUAL, *group, target=Target(card=gpus()[name]))
    screen = shown(advice)
    assert "questions/s" in screen and "each)" in screen
    assert len(screen.splitlines()) <= SCREEN_LINES
    assert ("torchrun --nnodes 2 --nproc_per_node 2" in screen) == ("nodes=2" in group)
