"""The Plan tab says what `advise` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from advisor.machine.evidence import Evidence
from advisor.machine.probe import probe
from advisor.machine.target import Target
from advisor.preflight import advise
from profiles.gpus import gpus
from profiles.plan import Plan
from profiles.sizes import GIB
from studio.places import Places
from studio.plans import Wanted
from tests.studio.conftest import Page

CASES = [
    ("7b", "rtx-3060-12gb", "usual", ()),
    (None, "8GiB", "precision", ("lora.rank=16",)),
    ("13b", "3GiB", "usual", ("quantization=none",)),
]


@pytest.mark.parametrize(("model", "card", "prefer", "settings"), CASES)
def test_it_is_the_advisors(page: Page, model, card, prefer, settings) -> None:
    told = page.ask("plan", model=model, card=card, prefer=prefer, settings=settings)
    known = gpus().get(card)
    target = Target(card=known) if known else Target(vram_bytes=int(card[:-3]) * GIB)
    advice = advise(probe(), model, settings, target, evidence=Evidence.here(), prefer=prefer)
    assert told["verdict"] == advice.verdict and told["summary"] == advice.summary
    assert told["hash"] == (advice.plan.content_hash if advice.plan else "")
    assert told["trains"] == (advice.exit_code == 0)
    if advice.needs and advice.budget:
        assert told["bar"]["needs"] == advice.needs.bytes
        assert told["bar"]["usable"] == advice.budget.usable.bytes
        assert sum(told["bar"]["parts"].values()) == advice.needs.bytes


def test_settings_that_cannot_run_are_explained(page: Page) -> None:
    assert "no such setting" in page.error("plan", model="7b", settings=["lora.rang=8"])
    assert "unknown model" in page.error("plan", model="8b")
    assert "give a size" in page.error("plan", model="7b", card="a card")
    assert "ReasonSeg" in page.error("plan", model="tiny", data="work/photos/outlined")


def test_no_path_comes_in_with_the_settings(page: Page) -> None:
    for text in ("weights=/etc", " weights = /etc", "weights=random"):
        assert "in its own field" in page.error("plan", model="7b", settings=[text])
    assert "does not see" in page.error("plan", model="7b", weights="/etc")
    assert "does not see" in page.error("plan", model="tiny", data="../..")


def test_a_plan_is_saved_once(page: Page) -> None:
    wanted = {"model": "7b", "card": "rtx-3060-12gb"}
    assert page.ask("save-plan", wanted=wanted, name="mine") == {"place": "work/plans/mine.json"}
    saved = Plan.read(page.home / "plans" / "mine.json")
    assert saved.content_hash == page.ask("plan", **wanted)["hash"]
    assert "taken" in page.error("save-plan", wanted=wanted, name="mine")
    too_large = {"model": "13b", "card": "3GiB", "settings": ["quantization=none"]}
    assert "no plan to train" in page.error("save-plan", wanted=too_large, name="other")
    assert not (page.home / "plans" / "other.json").exists()


@pytest.mark.parametrize(
    ("card", "title", "settings"),
    [("RTX 3060 12GB", "RTX 3060 (12 GB)", []), ("7,5", "7.5 GiB card", []),
     ("2x RTX 3090", "RTX 3090 (24 GB)", ["processes=2"])],
)  # fmt: skip
def test_a_card_is_named_as_people_do(card: str, title: str, settings: list[str]) -> None:
    wanted = Wanted(card=card)
    target = wanted.target()
    assert target is not None and target.title == title
    assert wanted.assignments(Places([Path(".")])) == settings
