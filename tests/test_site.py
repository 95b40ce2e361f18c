"""The documentation's site: built strictly, without a broken link, searched from a disk."""

from __future__ import annotations

import re
import shutil
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.browser import browser, chromium
from tests.test_docs import script

ROOT = Path(__file__).parents[1]
# The pages that a search shows, in their order; the theme keeps its results in a shadow tree.
SHOWN = """(() => {
  const found = [];
  const walk = (root) => root.querySelectorAll("*").forEach((one) => {
    if (one.shadowRoot) walk(one.shadowRoot);
    if (one.tagName === "A" && one.href.includes("?h=")) found.push(one.href);
  });
  walk(document);
  return found;
})()"""
ASKED = {  # what a new user looks for, and the page that must be the first result
    "how long does training take": "advice.html",
    "RTX 4070": "cards.html",
    "LabelMe": "own-data.html",
    "two GPUs": "several-gpus.html",
    "not tested": "install.html",
}


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("tools/make_site.py", monkeypatch)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole site, built as `make site` does, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        made = script("tools/make_site.py", patch)
        shutil.copy(ROOT / made.CONFIGURATION, folder)
        made.build(folder)
    yield folder / "site"


def pages_of(navigation: Any) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, dict):
        yield from (page for part in navigation.values() for page in pages_of(part))
    else:
        yield from (page for part in navigation for page in pages_of(part))


def test_every_page_is_in_the_navigation(tools: ModuleType) -> None:
    project = tomllib.loads((ROOT / tools.CONFIGURATION).read_text("utf-8"))["project"]
    known = {path.name for path in (ROOT / "docs").glob("*.md")} | set(tools.FROM_ROOT.values())
    named = set(pages_of(project["nav"]))
    assert known <= named, f"{known - named}: name them in {tools.CONFIGURATION}, by a question"


def test_the_site_has_every_page_and_every_command(site: Path) -> None:
    commands = (site / "commands.html").read_text("utf-8")
    for command in ("lisa-advise explain-oom", "lisa-train convert", "lisa-segment"):
        assert re.search(f"<h[234][^>]*>{command}<", commands)
    assert "lisa-advise" in (site / "index.html").read_text("utf-8")
    assert (site / "whatif" / "data.js").is_file()


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_a_new_user_finds_the_page_by_one_search(site: Path, tmp_path: Path) -> None:
    """From a disk, without a network: nothing is asked of it, and nothing is wrong."""
    with browser(tmp_path) as tab:
        for asked, page in ASKED.items():
            tab.go((site / "index.html").as_uri())
            tab.run("document.querySelector('label[for=__search], .md-search__button').click()")
            until = time.monotonic() + 30
            tab.call("Input.insertText", text=asked)
            while not (found := tab.run(SHOWN)) and time.monotonic() < until:
                time.sleep(0.1)
            assert found and page in found[0], (asked, found)
        assert tab.problems == []


def test_a_broken_link_is_found(tools: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a> <a href="c.html">2</a> <b id="y">')
    (tmp_path / "b.html").write_text('<a href="a.html#y">3</a> <a href="https://a.b">4</a>')
    assert list(tools.broken(tmp_path)) == [
        "a.html: b.html#x: no such place on that page",
        "a.html: c.html: no such file",
    ]
    with pytest.raises(ValueError, match="no such file"):
        tools.linked("docs/plan.md", "[x](gone.md)")
    moved = tools.linked("docs/plan.md", "[x](../README.md#install) [y](../advisor/doctor.py)")
    assert moved.startswith("[x](index.md#install) [y](https://") and moved.endswith("doctor.py)")
