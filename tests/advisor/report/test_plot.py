"""The picture of a step, and the words about its parts."""

from __future__ import annotations

import json
import re
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from typer.testing import CliRunner

from advisor.advice import Advice
from advisor.choice.scales import INTERPOLATED
from advisor.cli.main import app
from advisor.cli.options import PLOT_SUFFIXES
from advisor.machine.budget import Basis
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.forecast import Forecast, Tier, TierName
from advisor.memory.live import LiveForecasts
from advisor.preflight import advise
from advisor.report.glossary import EXPLANATIONS, explain
from advisor.report.plot import figure, heads, picture
from profiles.gpus import gpus
from profiles.grid import caching_bytes, estimate
from profiles.measurement import Timeline
from profiles.models import models
from profiles.own_files import MARK
from profiles.plan import Plan
from profiles.tested import Verdict

GIB = 2**30
PARTS = {"frozen weights": [20 * GIB] * 8, "activations kept": [0, GIB, 2 * GIB, GIB] * 2,
         "gradients": [GIB // 4] * 8, "trained rows": [1] * 8}  # fmt: skip


def step_of(plan: Plan) -> Timeline:
    """A made-up step of two passes, whose tensors reach 22.25 GiB."""
    return Timeline(plan=plan, parts=PARTS, phases=((0, "forward"), (4, "backward")))


def told_of(plan: Plan, tensors: float = 22.25, pool: float = 22.375) -> Forecast:
    sizes = {"tensors": tensors, "pool": pool, "process": 23, "host": 2}
    tiers = tuple(Tier(name=name, bytes=round(sizes[name] * GIB) + (name != "pool"), source="")
                  for name in get_args(TierName))  # fmt: skip
    return Forecast(plan=plan, verdict="UNKNOWN", compute_capability=(8, 6), text_tokens=512,
                    masks=1, tiers=tiers, phases={"evaluation": round(tensors * GIB)})  # fmt: skip


def advised(**sizes: float) -> Advice:
    return advise(
        Machine(), "7b", ["quantization=none", "compile=false"], Target(vram_bytes=24 * GIB),
        live=lambda plan, text: told_of(plan, **sizes), exact=True,
    )  # fmt: skip


def drawn(advice: Advice) -> tuple[Any, dict[str, str]]:
    """The axes of the advice's picture, and what its legends say of each name."""
    assert advice.plan is not None and advice.forecast is not None
    (axes,) = figure(step_of(advice.plan), advice.forecast, advice).axes
    texts = [text.get_text() for legend in axes.findobj(type(axes.get_legend()))
             for text in legend.get_texts()]  # fmt: skip
    return axes, dict(text.rsplit("  ", 1) for text in texts)


def heights(axes: Any) -> list[float]:
    return [line.get_ydata()[0] for line in axes.lines]


def test_lines_and_areas_are_where_the_numbers_say() -> None:
    advice = advised()
    assert advice.budget is not None and advice.needs is not None
    axes, said = drawn(advice)
    sizes = [advice.budget.cap_bytes, advice.budget.usable.bytes, advice.needs.bytes]
    assert heights(axes) == [*(size / GIB for size in sizes), (22.25 * GIB + 1) / GIB]
    names = ["capacity", "usable", "plan needs (forecast)", "peak of tensors"]
    assert [said[name] for name in names] == ["23.23", "22.52", "22.38", "22.25"]
    assert advice.verdict == "FITS" and advice.needs.bytes == round(22.375 * GIB)
    thick, thin = (axes.lines[n].get_linewidth() for n in (1, 0))
    assert thin < 1 < 2 < thick, "what is usable is the limit"
    # The areas end where the stack ends, and each is as high as its part.
    tops = [max(y for _, y in area.get_paths()[0].vertices) for area in axes.collections]
    assert tops == pytest.approx([20, 20.25, 22.25, 22.25], abs=1e-6)
    parts = ("others", "activations kept", "gradients", "frozen weights")
    assert [said[name] for name in parts] == ["0.00", "2.00", "0.25", "20.00"]


def test_a_figure_with_another_basis_has_a_name_of_its_own() -> None:
    advice = advised()
    assert advice.needs is not None
    measured = advice.needs.model_copy(update={"bytes": 21 * GIB, "basis": "measured"})
    said = drawn(advice.model_copy(update={"needs": measured}))[1]
    assert said["plan needs (measured)"] == "21.00"
    assert said["pool of this step (forecast)"] == "22.38"
    between = advise(Machine(), "7b", ["quantization=none"], Target(vram_bytes=24 * GIB))
    assert between.needs is not None
    said = drawn(advice.model_copy(update={"needs": between.needs}))[1]
    assert said["plan needs (interpolated)"] == f"{between.needs.bytes / GIB:.2f}"
    elsewhere = drawn(advised(tensors=22.3))[1]
    assert elsewhere["peak of this step; evaluation: 22.30 GiB;"] == "22.25"


@pytest.mark.parametrize("name", sorted(gpus(), key=lambda one: -len(gpus()[one].name))[:3])
def test_its_heads_are_not_cut(name: str) -> None:
    """The longest of each: model, card, and plan."""
    advice = advised()
    settings = ["questions_per_picture=1", "micro_batch=1", "checkpointed_layers=32",
                "host_embeddings=true", "host_layers=32"]  # fmt: skip
    assert advice.plan is not None and advice.forecast is not None and advice.gpu is not None
    plan = advice.plan.override(settings)
    gpu = advice.gpu.model_copy(update={"name": gpus()[name].name})
    update = {"plan": plan, "gpu": gpu, "model": max(models(), key=len)}
    shown = advice.model_copy(update=update)
    found = figure(step_of(plan), advice.forecast, shown)
    found.canvas.draw()
    edge = found.bbox.x1
    assert [text.get_text() for text in found.texts] == list(heads(shown, plan))
    assert "passes shown" in found.texts[1].get_text()
    assert all(text.get_window_extent().x1 < edge for text in found.texts)
    boxes = [text.get_window_extent() for text in found.texts]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    assert boxes[-1].y0 >= found.axes[0].get_window_extent().y1


def test_it_can_be_read_in_grey() -> None:
    """Neighbours differ by far in lightness or by their hatch, and both ways in most cases."""
    axes, _ = drawn(advised())
    faces = [(sum(w * c for w, c in zip((0.3, 0.59, 0.11), to_rgb(area.get_facecolor()[0]),
                                        strict=True)), area.get_hatch())
             for area in axes.collections]  # fmt: skip
    greys = [grey for grey, _ in faces]
    assert greys == sorted(greys) and min(b - a for a, b in pairwise(greys)) > 0.15
    assert all(a != b for (_, a), (_, b) in pairwise(faces))
    assert len({line.get_linestyle() for line in axes.lines}) == 4


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--model", "7b", "--vram", "24GiB", "--set", "quantization=none"], "compile"),
        (["--model", "7b", "--vram", "4GiB"], "host_layers"),
        (["--model", "qwen3-vl-2b", "--gpu", "RTX 3060 12GB"], "compile"),
    ],
)
def test_text_json_and_picture_have_the_same_figures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rehearsals_here: None,
    options: list[str],
    asked: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "step.svg"
    options += ["--plot", str(file)]
    shown = CliRunner().invoke(app, [*options, "--json"])
    assert shown.exit_code == 0, shown.stderr
    advice = Advice.model_validate_json(shown.stdout)
    told, budget, needs = advice.forecast, advice.budget, advice.needs
    assert told and budget and needs and advice.plan and getattr(advice.plan, asked)
    pool, caching = told.tier("pool").bytes, caching_bytes(advice.plan)
    assert needs.bytes == max(pool, caching) <= budget.usable.bytes
    said = dict(re.findall(r">([^<>]+)  ([0-9.]+)</text>", file.read_text(encoding="utf-8")))
    others = float(said.pop("others", 0))
    what = "building the feature cache" if pool < caching else "plan needs"
    numbers = {
        "capacity": budget.cap_bytes, "usable": budget.usable.bytes,
        f"{what} (forecast)": needs.bytes, "peak of tensors": told.tier("tensors").bytes,
    }  # fmt: skip
    if pool < caching:  # as on the smallest cards
        numbers["pool of this step (forecast)"] = pool
    parts = {name: size for name, size in told.live_at_peak.items() if name in said}
    assert said == {name: f"{size / GIB:.2f}" for name, size in (numbers | parts).items()}
    small = sum(told.live_at_peak.values()) - sum(parts.values())
    assert others == pytest.approx(small / GIB, abs=0.006)
    # The same step, drawn again, would be the same picture.
    monkeypatch.setattr("advisor.report.plot.picture", lambda *_: f"<svg/>{MARK}".encode())
    first = " ".join(CliRunner().invoke(app, options).stdout.split())
    interpolated = estimate(advice.plan, told.text_tokens).pool_bytes
    more = " to build the feature cache, more than a step" if pool < caching else ""
    assert f"{needs.bytes / GIB:.2f}{more}, forecast" in first
    text = " ".join(CliRunner().invoke(app, [*options, "--why"]).stdout.split())
    assert f"plan needs {needs.bytes / GIB:.2f} GiB forecast a forecast of this plan" in text
    near = re.search(r"; interpolated it was ([0-9.]+) GiB", text)
    assert near and float(near[1]) == pytest.approx(interpolated / GIB, abs=0.01)
    assert f"at most {needs.bytes / GIB:.2f} GiB of {budget.usable.bytes / GIB:.2f} GiB" in text


def test_without_a_picture_the_figure_says_that_it_is_interpolated() -> None:
    shown = CliRunner().invoke(app, ["--model", "7b", "--vram", "24GiB", "--why"])
    assert "interpolated between forecasts" in " ".join(shown.stdout.split())


def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveForecasts, "__call__", lambda self, plan, text: told_of(plan))
    monkeypatch.setattr(LiveForecasts, "step", lambda self, plan, text: step_of(plan))


@pytest.mark.parametrize("suffix", PLOT_SUFFIXES)
def test_every_kind_of_picture_that_is_named_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    made_up(monkeypatch)
    path = tmp_path / f"memory{suffix.upper()}"
    shown = CliRunner().invoke(app, ["--gpu", "RTX 4090", "--plot", str(path)])
    assert shown.exit_code == 0, shown.stderr
    content = path.read_bytes()
    if suffix == ".png":
        with Image.open(BytesIO(content)) as image:
            image.load()
            assert image.format == "PNG" and image.size == (1152, 648)
    elif suffix == ".svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
        text = content.decode()
        assert "@font-face" not in text and "<image" not in text
        links = set(re.findall(r"https?://[^\"'<> ]+", text))
        assert all("w3.org" in x or "purl.org" in x or "creativecommons" in x or "matplotlib" in x
                   for x in links), links  # fmt: skip
    else:
        assert content.startswith(b"%PDF")


def test_the_same_picture_is_the_same_bytes() -> None:
    advice = advised()
    assert advice.plan is not None and advice.forecast is not None
    step = step_of(advice.plan)
    for kind in ("png", "svg", "pdf"):
        one, other = (picture(step, advice.forecast, advice, kind) for _ in range(2))
        assert one == other, kind
        assert MARK.encode() in one[:4096] + one[-4096:], kind


def test_what_cannot_be_drawn_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch)
    for option in ("--plot", "--save"):
        nowhere = CliRunner().invoke(
            app, ["--gpu", "4090", option, str(tmp_path / "absent" / "x.png")]
        )
        assert nowhere.exit_code == 2 and "cannot be written: no folder" in nowhere.stderr
        folder = CliRunner().invoke(app, ["--gpu", "4090", option, str(tmp_path)])
        assert folder.exit_code == 2 and "cannot be written: is a folder" in folder.stderr
        assert "forecasting" not in nowhere.stderr + folder.stderr
    kind = CliRunner().invoke(app, ["--gpu", "RTX 4090", "--plot", str(tmp_path / "x.xyz")])
    assert kind.exit_code == 2 and ".png, .svg" in kind.stderr
    tiny = CliRunner().invoke(app, ["--plot", str(tmp_path / "none.png")])
    assert tiny.exit_code == 0 and "not drawn" in tiny.stderr
    assert json.loads(CliRunner().invoke(app, ["--json"]).stdout)["forecast"] is None


def test_every_part_that_is_counted_is_explained() -> None:
    from trainer.rehearse.step_timeline import BORN

    assert set(BORN.values()) <= EXPLANATIONS.keys()
    for name in (*get_args(TierName), "usable", "free", "margin", "compiled layers"):
        assert explain(name), name
    for name in (*get_args(Verdict), *get_args(Basis), INTERPOLATED):
        assert explain(name), name
    assert explain("Frozen_weights").startswith("frozen weights: ")
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        explain("margn")
    assert CliRunner().invoke(app, ["--explain", "context"]).stdout.startswith("context: ")
    assert CliRunner().invoke(app, ["--explain", "nothing"]).exit_code == 2
