"""lisa-advise report: one HTML file, from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor.advice import Advice
from advisor.cli.main import app
from advisor.report.cost_text import cost_lines
from advisor.report.summary import commands
from tests.advisor.fake_nvml import NVMLError_LibraryNotFound, install
from tests.advisor.report.test_plot import GIB, advised, made_up

HOSTILE = "<script>alert(1)</script>\u001b[2J<img src=x onerror=y>"
VOID = {"meta", "img", "br", "rect", "line", "path", "use", "hr"}


class Page(HTMLParser):
    """What a browser would make of it: tags, their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made_up(monkeypatch)


def reported(file: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["report", str(file), *options])


def page_of(file: Path) -> Page:
    found = Page(file.read_text(encoding="utf-8"))
    assert found.open == []
    return found


def run_folder(folder: Path, advice: Advice | None, **changes: object) -> Path:
    """A run of the advised plan, as lisa-train leaves it."""
    plan = (advice or advised()).plan
    assert plan is not None
    (folder / "last").mkdir(parents=True)
    (folder / "plan.json").write_text(plan.override([f"{k}={v}" for k, v in changes.items()])
                                      .to_json())  # fmt: skip
    if advice is not None:
        (folder / "advice.json").write_text(advice.model_dump_json())
    (folder / "versions.json").write_text(json.dumps({"torch": "9.8.7" + HOSTILE}))
    peaks = {"peak_allocated_bytes": 22 * GIB, "peak_reserved_bytes": 20 * GIB}
    (folder / "last" / "facts.json").write_text(json.dumps(peaks))
    steps = [30, 30, 30, 4, 5, 6]
    rows = [{"step": n, "step_seconds": time} for n, time in enumerate(steps)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"step": 7, "step_sec')
    summary = {"before": {"giou": 0.1}, "best": {"giou": 0.5}, "after": {"giou": 0.4},
               "epochs": 1, "steps": 6, "seconds": 105.0}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_one_file_with_the_figures_and_nothing_from_the_network(tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    options = ["--model", "7b", "--vram", "24GiB", "--no-quantization", "--price", "0.4",
               "--set", "compile=false"]  # fmt: skip
    shown = reported(file, *options)
    assert shown.exit_code == 0, shown.stderr
    page, advice = page_of(file), advised()
    assert advice.budget is not None and len(commands(advice)) == 3, "the conversion is first"
    for words in ("FITS", advice.summary, *commands(advice), "usable 22.52 GiB",
                  "plan needs 22.38", "frozen weights 20.00", "bf16 base, bf16 compute",
                  "row lean-seed-4", "10 epochs cost",
                  "with 3 a picture at 512 text tokens a sample (ranks plans), estimated",
                  "1 a picture, usual texts (gives the time) (forecast)"):  # fmt: skip
        assert words in page.text, words
    for _, words in cost_lines(advice):
        assert " ".join(words.split()) in page.text
    assert {tag for tag, _ in page.tags} >= {"svg", "table", "h1", "title"}
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert "url(http" not in (attributes.get("style") or "")
    assert "default-src 'none'" in file.read_text()
    fits_not = reported(file, "--model", "7b", "--vram", "3GiB")
    assert fits_not.exit_code == 1 and "OOM" in page_of(file).text


def test_a_run_is_compared_with_its_own_forecast(tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    shown = reported(file, "--run", str(run_folder(tmp_path / "run", advised())))
    assert shown.exit_code == 0, shown.stderr
    text = page_of(file).text
    assert "tensors, GiB 22.25 22.00 +1.1%" in text
    assert "pool, GiB 22.38 20.00 +11.9%" in text
    rate = advised().speed
    assert rate is not None
    off = f"{rate.samples_per_second:.2f} 4.00 {rate.samples_per_second / 4 - 1:+.1%}"
    assert f"questions a second {off}" in text, "20 questions in the median of the later steps"
    assert "6 steps in 105 s" in text
    assert "gIoU: before 0.100, best 0.500, after 0.400" in text
    assert "torch 9.8.7" in text


def test_another_plan_has_no_forecast_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    run = run_folder(tmp_path / "run", advised(), seed=7)
    assert reported(file, "--run", str(run)).exit_code == 0
    text = page_of(file).text
    assert "for another plan" in text and "tensors, GiB not known 22.00" in text
    alone = run_folder(tmp_path / "alone", None)
    assert reported(file, "--run", str(alone), "--vram", "24GiB", "--set", "compile=false",
                    "--set", "quantization=none", "--model", "7b").exit_code == 0  # fmt: skip
    assert "tensors, GiB 22.25 22.00 +1.1%" in page_of(file).text


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    advice = advised()
    assert advice.gpu is not None
    update = {"summary": HOSTILE, "command": HOSTILE, "model": HOSTILE,
              "gpu": advice.gpu.model_copy(update={"name": HOSTILE + "$x$"})}  # fmt: skip
    run = run_folder(tmp_path / HOSTILE[9:15], advice.model_copy(update=update))
    file = tmp_path / "out.html"
    assert reported(file, "--run", str(run)).exit_code == 0
    page = page_of(file)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>\\u001b[2J") >= 4, "shown as it is"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", file.read_text(encoding="utf-8"))


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.html"
    run = run_folder(tmp_path / "run", advised())

    def refused(words: str, *options: str, to: Path = file) -> None:
        shown = reported(to, *options)
        assert (shown.exit_code, words in shown.stderr) == (2, True), (shown.stderr, words)
        assert not file.exists() and "Traceback" not in shown.stderr

    refused("must end in .html", to=tmp_path / "out.pdf")
    refused("no folder", to=tmp_path / "absent" / "out.html")
    refused("no such folder", "--run", str(tmp_path / "absent"))
    refused("holds no plan.json", "--run", str(tmp_path))
    refused("has its own advice", "--run", str(run), "--vram", "8GiB")
    refused("give one of them", "--vram", "8GiB", "--gpu", "4090")
    install(monkeypatch, init_error=NVMLError_LibraryNotFound("not found"))
    refused("--gpus: got 2, and this machine shows no usable GPU", "--gpus", "2")
    for name, content, words in (("summary.json", "[1]", "is no JSON object"),
                                 ("advice.json", "{}", "is no advice of this version"),
                                 ("plan.json", "{", "is no plan")):  # fmt: skip
        before = (run / name).read_text()
        (run / name).write_text(content)
        refused(words, "--run", str(run))
        (run / name).write_text(before)
    (run / "summary.json").unlink()
    (run / "summary.json").mkdir()
    refused("summary.json", "--run", str(run))
