"""The first screen: what, how much, what to type, on one screen of any terminal."""

from __future__ import annotations

import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from advisor.advice import Advice
from advisor.cost.duration import duration_of, within
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from advisor.report.cost_text import cost_lines
from advisor.report.glossary import explain
from advisor.report.memory_bar import ASCII_LIMIT, LIMIT, PARTS, WIDTH, bar
from advisor.report.plan_words import changes, plan_text
from advisor.report.summary import alternatives
from advisor.report.text import PlainConsole, print_text
from profiles.gpus import GpuProfile, gpus
from profiles.measurement import DataCounts
from profiles.models import DEFAULT_MODELS
from profiles.sizes import GIB
from profiles.text import time_text

COLUMNS, LINES = 80, 24
ROOT = Path(__file__).resolve().parents[3]


def shown(advice: Advice, encoding: str = "utf-8", why: bool = False) -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_text(advice, PlainConsole(file=file, width=COLUMNS), why)
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


def height(lines: list[str]) -> int:
    """Lines on the terminal: a command is not wrapped, and takes as many as it needs."""
    return sum(max(1, -(-len(line.rstrip()) // COLUMNS)) for line in lines)


def advice_for(size: float, model: str | None = None) -> Advice:
    return advise(Machine(), model, (), Target(vram_bytes=round(size * GIB)))


@pytest.mark.parametrize("model", [None, "7b", "13b", "qwen3-vl-8b"])
def test_it_is_one_screen_even_with_the_longest_names(model: str | None) -> None:
    longest: dict[float, GpuProfile] = {}
    for card in sorted(gpus().values(), key=lambda one: len(one.title)):
        longest[card.memory_gb] = card
    for card in longest.values():
        advice = advise(Machine(), model, (), Target(card=card))
        lines = shown(advice)
        assert height(lines) <= LINES, "\n".join(lines)
        assert lines[0].startswith(advice.verdict)
        for command in (advice.command or "").splitlines():
            assert f"  {command}" in lines and "&&" not in command


def test_it_says_what_how_long_and_what_to_type() -> None:
    text = "\n".join(shown(advice_for(8)))
    for word in ("\nmodel ", "\nplan ", "\nmemory ", "\nhost ", "\ntime ", "\ndisk ",
                 "epochs of 239 pictures", "lisa-train convert", "--why", "--prefer"):  # fmt: skip
        assert word in text, word
    assert "Also considered" not in text
    why = "\n".join(shown(advice_for(8), why=True))
    assert "Also considered" in why and "Why" in why and "If memory runs out after all" in why


# What needs no explanation on a first screen; every other word must have one.
PLAIN = """
a about after already an and another are as assumed at b become best build by changes compared
cost counted cpu docs each else failing fast faster first fix folder for from full half here hour
how if in install instead is it kernels layers left less lisa little longest machine machines md
ethernet gbit min model more most needs no none not nothing of on once one only other pictures
plans ram reached reasons
released rougher run s says score segment shows size slower steps than that the them there these
they this through tiny to too torch trains up used usual vram well what which why with without x
have h can two texts save gpus number cards tenth time all which were cuda pcie gpu gtx rtx
apache-2 lisa-7b x16 lisa-advise lisa-train past slow limit very windows"""
SCREENS = [
    {"target": Target(vram_bytes=3 * GIB)}, {"target": Target(vram_bytes=4 * GIB)}, {},
    {"target": Target(vram_bytes=2 * GIB), "model": "13b"},
    {"target": Target(card=gpus()["rtx-4060-8gb"], windows=True)},
    {"target": Target(card=gpus()["gtx-1080-8gb"]), "model": "7b"},
    {"target": Target(card=gpus()["rtx-3060-12gb"]), "prefer": "speed"},
    {"target": Target(card=gpus()["rtx-4090-24gb"]), "model": "13b", "overrides": ["processes=2"]},
    {"target": Target(card=gpus()["gtx-1080-8gb"]), "overrides": ["processes=4", "nodes=2"]},
]  # fmt: skip


@pytest.mark.parametrize("asked", SCREENS)
def test_every_word_of_the_first_screen_is_plain_or_explained(asked: dict[str, Any]) -> None:
    advice = advise(Machine(), **asked)
    if advice.duration is not None:
        advice = advice.model_copy(update={"duration": within(advice.duration, 1, 0.4)})
    assert advice.exit_code or height(shown(advice)) <= LINES
    lines = [line for line in shown(advice) if not line.startswith(("  lisa-", "  torchrun"))]
    words = {word for line in lines for word in re.findall(r"[A-Za-z](?:[\w,-]*\w)?", line)}
    assert {"plan", "time", "GiB"} <= words or advice.model == "tiny"
    for word in words:
        if word.lower() not in PLAIN.split() and not word.startswith(("sa2va-", "qwen3-")):
            assert explain(word), word


def test_a_word_is_explained_with_its_number_in_the_plural_and_in_a_phrase() -> None:
    told = {"2 of 36 layers checkpointed": "checkpointed", "passes": "pass", "INT8": "int8",
            "a card of 11 GiB": "larger", "r=8": "r"}  # fmt: skip
    for phrase, word in told.items():
        assert explain(phrase).startswith(f"{word}: ")
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    for entry in set(re.findall(r" GiB: ([^|*]+?) \|", page)):
        assert all(explain(word.strip()) for word in entry.split(",")), entry
    with pytest.raises(ValueError, match="'foo'; docs/words.md"):
        explain("foo")
    with pytest.raises(ValueError) as caught:
        explain("nf44")
    assert "did you mean 'nf4'?" in str(caught.value) and len(str(caught.value)) < 120


def test_the_rate_and_the_time_say_which_questions_they_are_for() -> None:
    advice = advice_for(12, "7b")
    assert advice.duration is not None
    text = " ".join("\n".join(shown(advice, why=True)).split())
    rate = 20 / advice.duration.step_seconds
    assert f"; {rate:.2g} for ReasonSeg: 1 a picture, usual texts (gives the time)" in text
    assert "with 3 a picture at 512 text tokens a sample (ranks plans), estimated" in text
    steps = 10 * 12  # of 239 questions
    assert f"after 6 of {steps} steps of warm-up" in text


def test_a_short_name_says_where_embeddings_lie_if_another_plan_has_them_elsewhere() -> None:
    """Of two plans with one name in a list the reader takes the wrong one."""
    for model, card in product((None, "7b"), ("rtx-3060-12gb", "rtx-4090-24gb", "rtx-4060-8gb")):
        advice = advise(Machine(), model, (), Target(card=gpus()[card]))
        assert advice.plan is not None
        found = *advice.considered[1:], *advice.ladder, *advice.alternatives.values()
        for plan in (one.plan for one in found):
            elsewhere = plan.host_embeddings != advice.plan.host_embeddings
            assert ("embeddings on the" in changes(plan, advice.plan)) == elsewhere
            assert ("embeddings on the host" in plan_text(plan)) == plan.host_embeddings
    ladder = [changes(rung.plan, advice_for(12).plan) for rung in advice_for(12).ladder]
    assert "none checkpointed, embeddings on the host" in ladder


def test_precise_weights_are_weighed_against_the_fastest_plan_and_the_screen_says_so() -> None:
    advice = advice_for(12)
    (because,) = (one.because for one in advice.reasons if one.setting == "quantization")
    (slow,) = re.findall(r"[\d.]+% slower than the fastest", because)
    assert f"; {slow}" in dict(alternatives(advice))["precision"]


def test_larger_batches_that_fit_are_said_to_be_no_better() -> None:
    """8 would not divide 20 questions, and 7 need not: pictures have several."""
    card, pinned = Target(card=gpus()["rtx-3060-12gb"]), ["host_layers=10"]
    advice = advise(Machine(), None, pinned, card)
    (because,) = (one.because for one in advice.reasons if one.setting == "micro_batch")
    assert "; up to 7 would fit as well, and be no better" in because
    assert "a plan fits without host_layers=10" in str(advice.findings)
    once = advise(Machine(), None, [*pinned, "questions_per_picture=1", "micro_batch=5"], card)
    assert "a plan fits without host_layers=10" in str(once.findings)


def test_a_preference_that_changes_nothing_says_so():
    card = Target(card=gpus()["rtx-4090-24gb"])
    for order, changed in (("speed", False), ("headroom", True), ("usual", True)):
        text = "\n".join(shown(advise(Machine(), "7b", (), card, prefer=order)))
        assert (f"{order} changes nothing here" in text) != changed, text


def test_a_host_that_is_too_small_says_what_it_lacks_and_the_way_out():
    advice = advise(Machine(), None, (), Target(vram_bytes=8 * GIB, ram_bytes=4 * GIB))
    text = " ".join("\n".join(shown(advice)).split())
    assert advice.model == "tiny" and "..." not in text
    needs = float(text.split("host memory: ")[1].split()[0])
    assert f"take {needs:.2f} GiB or more" in text, "one figure for one plan"
    assert "model tiny, because a larger one does not fit: sa2va-qwen3-vl" in text
    assert "host memory is too small: 2.00 GiB are usable" in text
    assert "GiB or more -> --ram SIZE for a machine with more" in text


@pytest.mark.parametrize("system", ["linux", "windows"])
def test_a_card_that_needs_another_torch_says_so_below_the_verdict(system: str) -> None:
    """Without that build nothing that the advice says can be done."""
    old, new = ("gtx-1080-8gb", "titan-v-12gb"), ("gtx-1660-ti-6gb", "rtx-3060-12gb")
    for card in (gpus()[key] for key in (*old, *new)):
        lines = shown(advise(Machine(), "7b", (), Target(card=card, windows=system == "windows")))
        told = lines[1].startswith("  first install torch for CUDA 12.6")
        assert told == (card.key in old), card.key
        assert height(lines) <= LINES, "\n".join(lines)


def test_features_are_of_both_splits():
    lines = dict(cost_lines(advice_for(8)))
    assert "built once for 439 pictures, validation included" in lines["features"]
    assert "10 epochs of 239 pictures" in lines["time"]


@pytest.mark.parametrize(("size", "model"), [(3, "7b"), (3, None), (12, "13b"), (16, "7b")])
def test_one_thing_is_not_called_several_and_nothing_costs_less_than_nothing(size, model):
    """With --why: 1 layers, -6% slower and 0.00 GiB more were said."""
    said = "\n".join(shown(advice_for(size, model), why=True))
    assert not re.search(r"\b1 (pictures|layers|passes|forward passes|questions)\b", said), said
    assert not re.search(r"-\d+% slower|\b0\.00 GiB more", said), said


@pytest.mark.parametrize("size", [2.2, 4, 8, 24, 80])
def test_the_bar_is_drawn_to_scale(size: float) -> None:
    advice = advice_for(size, "7b")
    budget, needs = advice.budget, advice.needs
    assert budget is not None and needs is not None
    console = PlainConsole(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    line = bar(advice, console).plain
    whole = max(budget.free.bytes, needs.bytes)
    assert len(line) == WIDTH
    assert abs(line.index(LIMIT) - WIDTH * budget.usable.bytes / whole) <= 1
    filled = sum(line.count(part.mark) for part in PARTS) + (needs.bytes > budget.usable.bytes)
    assert abs(filled - WIDTH * needs.bytes / whole) <= 1
    assert ("caching" in advice.parts) == (size <= 4)
    for part in PARTS:
        expected = WIDTH * advice.parts.get(part.name, 0) / whole
        assert abs(line.count(part.mark) - expected) <= 2, part.name


def test_a_terminal_without_unicode_gets_letters() -> None:
    lines = shown(advice_for(8, "7b"), "ascii")
    (memory,) = [line for line in lines if line.startswith("memory")]
    drawn = memory.removeprefix("memory").strip()
    assert set(drawn) == {"W", "T", "A", ".", ASCII_LIMIT} and drawn.index("W") < drawn.index("T")


def test_alternatives_gain_something_by_their_own_measure() -> None:
    for size in (4, 6, 8, 12, 16, 24, 80):
        for model in (DEFAULT_MODELS[0], "7b", "13b"):
            advice = advice_for(size, model)
            best = advice.considered[0]
            told = dict(alternatives(advice))
            for order, other in advice.alternatives.items():
                faster = other.speed.samples_per_second / best.speed.samples_per_second
                assert order not in told or order != "speed" or faster > 1.02
                assert order not in told or order != "headroom" or "less" in told[order]
                assert order not in told or other.plan != best.plan
            for text in told.values():
                assert "as fast, 0.00 GiB" not in text and "the same plan" not in text, text


def test_a_size_in_gb_is_told_at_the_top() -> None:
    lines = shown(advise(Machine(), "7b", (), Target(vram_bytes=12 * 10**9)))
    told = "card 12 GB are 11.18 GiB, and a card sold as that has 12 GiB; else --vram 12GiB"
    assert told in " ".join(" ".join(lines).split())


def test_features_of_many_pictures_come_with_the_way_around_them() -> None:
    counts = (
        DataCounts(train_pictures=n, val_pictures=n, epoch_questions=n, val_questions=n)
        for n in (240, 9000)
    )
    few, many = (
        " ".join(shown(advise(Machine(), None, (), Target(vram_bytes=24 * GIB), size=one)))
        for one in counts
    )
    assert "cached_encoders=" in many and "cached_encoders=" not in few


def test_what_fp8_gains_is_the_time_row_s_training_with_it() -> None:
    card = gpus()["rtx-4090-24gb"]
    advice = advise(Machine(), None, (), Target(card=card))
    assert advice.plan is not None
    in_both = (advice.plan.override([f"products={one}"]) for one in ("fp8", "dtype"))
    rows = [duration_of(plan, card) for plan in in_both]
    times = [time_text(one.training_seconds) for one in rows]
    told = f"--set products=fp8: about {times[0]} of training, not {times[1]}; it rounds more"
    text = " ".join(" ".join(shown(advice)).split())
    assert f"training {times[1]}, evaluation" in text and f"note {told}" in text
    assert ("FP8", told) in list(cost_lines(advice))  # --why and the page have it, too
