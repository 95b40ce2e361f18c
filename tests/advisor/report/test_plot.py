"""The picture of a step, and the words about its parts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from advisor.cli.main import app
from advisor.cli.options import PLOT_SUFFIXES
from advisor.memory.forecast import TierName
from advisor.report.glossary import EXPLANATIONS, explain
from advisor.report.plot import GREYS, LINE, PAPER, SIZE, _parts, _within, draw
from profiles.measurement import Timeline
from tests.conftest import tiny_plan

GIB = 2**30
STEP = Timeline(
    plan=tiny_plan(),
    parts={"frozen weights": [2 * GIB] * 8, "activations kept": [0, GIB, 2 * GIB, GIB] * 2,
           "gradients": [GIB // 4] * 8},
    phases=((0, "forward"), (4, "backward")),
)  # fmt: skip


def test_parts_what_is_usable_and_greys(tmp_path: Path) -> None:
    path = tmp_path / "memory.png"
    draw(STEP, "a title", round(4.5 * GIB), 3 * GIB, path)
    image = Image.open(path).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(grey, grey, grey) for grey in GREYS[:3]} | {LINE, PAPER} <= colours
    # The line of what is usable lies below the peak of 4.25 GiB, and is as wide as the plot.
    rows = [y for y in range(image.height) if image.getpixel((300, y)) == LINE]
    assert 56 < min(rows) < 300 and len(rows) == 3
    hatches = {index: {image.getpixel((745 + x, 58 + 26 * index + y)) for x in range(20)
                       for y in range(14)} for index in range(3)}  # fmt: skip
    assert len(set(map(frozenset, hatches.values()))) == 3, "told apart without colour"


def test_the_picture_has_the_figures_of_the_advice() -> None:
    """What compiled layers save is off the picture as it is off the text."""
    needs = round(3.5 * GIB)
    cut, saved = _within(_parts(STEP), needs)
    totals = [sum(sizes[n] for sizes in cut.values()) for n in range(8)]
    assert max(totals) == needs and saved == round(0.75 * GIB)
    assert cut["frozen weights"] == STEP.parts["frozen weights"]  # the shortest-lived go first
    assert totals[0] == round(2.25 * GIB)  # and what is below stays as it is
    assert _within(_parts(STEP), 5 * GIB) == (_parts(STEP), 0)


def test_a_picture_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timeline(plan: object, worst: object, capability: object) -> Timeline:
        asked.append(capability)
        return STEP

    monkeypatch.setattr("advisor.memory.forecast.timeline", timeline)
    path = tmp_path / "memory.png"
    shown = CliRunner().invoke(app, ["--gpu", "RTX 4090", "--plot", str(path)])
    assert shown.exit_code == 0 and path.is_file() and asked == [(8, 9)]
    for option in ("--plot", "--save"):
        nowhere = CliRunner().invoke(
            app, ["--gpu", "4090", option, str(tmp_path / "absent" / "x.png")]
        )
        assert nowhere.exit_code == 2 and "cannot be written: no folder" in nowhere.stderr
        folder = CliRunner().invoke(app, ["--gpu", "4090", option, str(tmp_path)])
        assert folder.exit_code == 2 and "cannot be written: is a folder" in folder.stderr
    assert len(asked) == 1, "nothing was reckoned for them"
    tiny = CliRunner().invoke(app, ["--plot", str(tmp_path / "none.png")])
    assert tiny.exit_code == 0 and "not drawn" in tiny.stderr


def test_every_part_that_is_counted_is_explained() -> None:
    from trainer.rehearse.fake import BORN

    assert set(BORN.values()) <= EXPLANATIONS.keys()
    for name in (*get_args(TierName), "usable", "free", "margin", "compiled layers"):
        assert explain(name), name
    assert explain("Frozen_weights").startswith("frozen weights: ")
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        explain("margn")
    assert CliRunner().invoke(app, ["--explain", "context"]).stdout.startswith("context: ")
    assert CliRunner().invoke(app, ["--explain", "nothing"]).exit_code == 2


@pytest.mark.parametrize("suffix", PLOT_SUFFIXES)
def test_every_kind_of_picture_that_is_named_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"memory{suffix}"
    draw(STEP, "a title", 4 * GIB, 3 * GIB, path)
    if suffix == ".pdf":
        assert path.read_bytes().startswith(b"%PDF")
        return
    with Image.open(path) as image:
        image.load()
        assert image.format != "PNG" or suffix == ".png"
        assert image.size == SIZE


def test_a_name_that_is_no_pictures_is_refused_before_the_work(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["--gpu", "RTX 4090", "--plot", str(tmp_path / "x.xyz")])
    assert shown.exit_code == 2 and ".png, .jpg" in shown.stderr
