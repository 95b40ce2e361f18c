"""The what-if page in a real browser, from its file: no server, no network."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.cost.duration import duration_of
from advisor.report.summary import commands, needed_torch
from profiles.measurement import DataCounts
from profiles.sizes import GIB
from profiles.text import time_text
from tests.browser import Tab, browser, chromium

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "whatif" / "index.html"
LARGEST = 640_000  # bytes of data.js, which a browser reads at every visit
needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    folder = tmp_path_factory.mktemp("whatif")
    shutil.copytree(PAGE.parent, folder / "page")  # nothing else of the repository is needed
    with browser(folder / "profile") as found:
        found.go((folder / "page" / "index.html").as_uri())
        yield found
        assert found.problems == []


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_whatif

        yield write_whatif
    finally:
        sys.path.remove(str(ROOT / "tools"))


def text_of(tab: Tab, name: str) -> str:
    return str(tab.run(f"document.getElementById({name!r}).textContent")).strip()


def pick(tab: Tab, name: str, value: str) -> None:
    tab.run(f"""{{ const box = document.getElementById({name!r}); box.value = {value!r};
                box.dispatchEvent(new Event("change", {{bubbles: true}})); }}""")


def test_the_data_is_small() -> None:
    assert 50_000 < (PAGE.parent / "data.js").stat().st_size < LARGEST


@needs_chromium
@pytest.mark.slow
def test_every_state_is_what_advise_says(tab: Tab, tool: Any) -> None:
    """30 of all states, drawn by a seed; nothing on the page is computed another way."""
    for state in random.Random(20).sample(tool.states(), 30):
        tab.run(f"location.hash = new URLSearchParams({state._asdict()!r}).toString()")
        tab.run("new Promise(done => setTimeout(done, 30))")  # the address changed
        advice = tool.advised(state)
        assert text_of(tab, "verdict") == advice.verdict, state
        assert text_of(tab, "command") == "\n".join(commands(advice)), state
        assert tab.run("document.getElementById('command-box').hidden") == (not advice.command)
        if advice.needs is None:
            assert text_of(tab, "headline") == advice.summary, state
            continue
        needs, usable = advice.needs.bytes / GIB, advice.budget.usable.bytes / GIB
        first = needed_torch(advice)
        assert text_of(tab, "first") == (f"For this card {first}." if first else ""), state
        words = f"{state.model} on {tool.title_of(state.card)}: needs {needs:.2f} GiB of "
        assert text_of(tab, "headline").startswith(f"{words}{usable:.2f} GiB usable"), state
        assert text_of(tab, "plan") == (
            f"Plan {advice.plan.content_hash}: {tool.plan_line(advice.plan)}"
        )
        rows = tab.run("""Object.fromEntries([...document.querySelectorAll("#numbers tbody tr")]
                          .map(row => [row.cells[0].textContent, row.cells[1].textContent]))""")
        parts = {name: f"{size / GIB:.2f} GiB" for name, size in advice.parts.items()}
        assert rows.items() >= parts.items(), state
        assert rows["plan needs"] == f"{needs:.2f} GiB"
        assert rows["usable (thick line)"] == f"{usable:.2f} GiB"
        assert rows["capacity (dashed line)"] == f"{advice.budget.cap_bytes / GIB:.2f} GiB"
        host = f"{advice.host_bytes / GIB:.2f} GiB of {advice.budget.host.bytes / GIB:.2f}"
        assert rows["host memory"] == host
        speed = float(f"{advice.speed.samples_per_second:.4g}")
        assert float(rows["questions a second"]) == pytest.approx(speed, rel=0.06)
        times = advice.duration
        seconds = (times.seconds, times.low_seconds, times.high_seconds)
        about, low, high = (time_text(size) for size in seconds)
        assert rows["time, 10 epochs of 239 pictures"] == f"{about} ({low} to {high})", state
        assert rows["disk"] == f"{advice.disk.total_bytes / GIB:.2f} GiB"
        limit = tab.run("document.querySelector('#bar .limit').getAttribute('x1') / 1000")
        whole = max(advice.budget.cap_bytes, advice.needs.bytes)
        assert limit == pytest.approx(advice.budget.usable.bytes / whole)


@needs_chromium
def test_pick_change_copy_and_reload(tab: Tab) -> None:
    tab.run("location.hash = ''")
    pick(tab, "card", "rtx-3090-24gb")
    pick(tab, "model", "7b")
    first = text_of(tab, "command")
    assert text_of(tab, "verdict") == "FITS" and "--gpu rtx-3090-24gb" in first
    pick(tab, "prefer", "headroom")
    second = text_of(tab, "command")
    assert "--prefer headroom" in second and second != first
    tab.run("""document.addEventListener("copy", () => window.seen = getSelection().toString())""")
    tab.run("""navigator.clipboard.writeText = text => { window.seen = text;
                                                         return Promise.resolve(); }""")
    tab.run("document.getElementById('copy').click()")
    assert tab.run("window.seen") == second and text_of(tab, "copied") == "Copied."
    tab.run("""navigator.clipboard.writeText = () => Promise.reject(new Error("refused"))""")
    tab.run("window.seen = ''; document.getElementById('copy').click()")
    tab.run("new Promise(done => setTimeout(done, 30))")
    assert tab.run("window.seen") == second, "an older browser copies what is selected"
    address = tab.run("location.hash")
    tab.reload()
    assert tab.run("location.hash") == address and text_of(tab, "command") == second
    chosen = tab.run("""["card", "model", "prefer"].map(n => document.getElementById(n).value)""")
    assert chosen == ["rtx-3090-24gb", "7b", "headroom"]
    tab.run("location.hash = '#card=<b>&model=constructor&text=9&prefer=__proto__'")
    tab.run("new Promise(done => setTimeout(done, 30))")
    assert text_of(tab, "verdict") in ("FITS", "TIGHT"), "an unknown state is the usual one"


@needs_chromium
@pytest.mark.parametrize(("card", "model"), [("rtx-3090-24gb", "7b"), ("8GiB", "qwen3-vl-4b")])
def test_time_is_of_the_readers_own_pictures(tab: Tab, tool: Any, card: str, model: str) -> None:
    """As the advice has it for data of that size; the command trains for as many epochs."""
    tab.run("location.hash = ''")
    pick(tab, "card", card)
    pick(tab, "model", model)
    rows = tool.advised(tool.State(card, model, 512, "usual"))
    plan = rows.plan.override(["schedule.epochs=3"])
    counts = DataCounts(train_pictures=4567, val_pictures=8, epoch_questions=4567, val_questions=8)
    expected = duration_of(plan, tool.targets()[card].card, counts)
    before = text_of(tab, "command")
    for name, value in (("pictures", "4567"), ("validated", "8"), ("epochs", "3")):
        pick(tab, name, value)
    shown = tab.run("""Object.fromEntries([...document.querySelectorAll("#numbers tbody tr")]
                       .map(row => [row.cells[0].textContent, row.cells[1].textContent]))""")
    about, _, rest = shown["time, 3 epochs of 4567 pictures"].partition(" (")
    assert about == time_text(expected.seconds) and rest.count(" to ") == 1
    assert text_of(tab, "command") == f"{before} --epochs 3"
    assert "pictures=4567" in tab.run("location.hash")
    of_all = "document.querySelector('[aria-current] td:nth-child(7)').textContent"
    assert tab.run(of_all) == about
    pick(tab, "pictures", "-3")
    assert tab.run("document.getElementById('pictures').value") == "239", "as usual"


@needs_chromium
def test_all_cards_are_sorted_by_a_click_and_by_the_keyboard(tab: Tab) -> None:
    shown = "[...document.querySelectorAll('#all tbody tr')].map(row => row.cells[{}].textContent)"
    cards = tab.run(shown.format(0))
    assert len(cards) == len(set(cards)) > 140
    sizes = [float(text) for text in tab.run(shown.format(1))]
    assert sizes == sorted(sizes)
    order = "document.querySelector('[data-column={}]').closest('th').getAttribute('aria-sort')"
    assert tab.run(order.format("size")) == "ascending"
    tab.run("document.querySelector('[data-column=speed]').focus()")
    for direction, down in (("ascending", False), ("descending", True)):
        tab.press("Enter", 13, "\r")
        assert tab.run(order.format("speed")) == direction
        speeds = [float(text) for text in tab.run(shown.format(5)) if text]
        assert speeds == sorted(speeds, reverse=down) and len(set(speeds)) > 20
    assert tab.run("document.activeElement.dataset.column") == "speed", "the focus stays"
    tab.run("document.querySelector('[data-card=t4-16gb]').click()")
    assert "card=t4-16gb" in tab.run("location.hash")
    assert tab.run("document.querySelector('[aria-current] th').textContent").startswith("T")


@needs_chromium
def test_it_is_usable_without_a_mouse_and_without_eyes(tab: Tab) -> None:
    """Every field has a name, Tab reaches what can be done, and contrasts are 4.5 at least."""
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n
             and not n.get("ignored")]  # fmt: skip
    for role in ("combobox", "button", "table", "image", "columnheader", "heading", "main"):
        of_role = [name for one, name in named if one == role]
        assert of_role and (role == "main" or all(of_role)), (role, of_role)
    assert {name for role, name in named if role == "combobox"} == {"Card", "Model", "Data",
                                                                     "Prefer"}  # fmt: skip
    assert tab.run("document.documentElement.lang") == "en"
    tab.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    tab.run("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(11):
        tab.press("Tab", 9)
        reached.append(tab.run("document.activeElement.id || document.activeElement.textContent"))
        style = tab.run("getComputedStyle(document.activeElement).outlineStyle")
        assert style not in ("none", ""), reached
    assert reached[:7] == ["card", "model", "text", "prefer", "pictures", "validated", "epochs"]
    assert reached[7:9] == ["command", "copy"]
    assert {name for role, name in named if role == "spinbutton"} == {
        "Pictures to train on", "Pictures to validate with", "Epochs",
    }  # fmt: skip
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.call("Emulation.setEmulatedMedia", features=features)
        for one in ("body", "select", "#copy", ".command code"):
            assert contrast(tab, one) >= 4.5, (scheme, one)


def contrast(tab: Tab, selector: str) -> float:
    """WCAG's contrast of an element's text with what is behind it."""
    colours = tab.run(f"""{{
        const one = document.querySelector({selector!r});
        let behind = one;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
            behind = behind.parentElement;
        [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor]
            .map(text => text.match(/[0-9.]+/g).slice(0, 3).map(Number)); }}""")

    def light(colour: list[float]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lights = sorted(map(light, colours))
    return (lights[1] + 0.05) / (lights[0] + 0.05)
