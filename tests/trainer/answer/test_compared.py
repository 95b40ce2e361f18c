"""lisa-train compare: which of two scored runs is better, from their files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainer.cli.train import app


def scored(run: Path, ious: list[float], split: str = "val") -> Path:
    folder = run / f"evaluation-{split}"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"split": split, "answers": "teacher-forced"}))
    rows = [json.dumps({"name": f"p{number}", "iou": iou}) for number, iou in enumerate(ious)]
    (folder / "images.jsonl").write_text("\n".join(rows))
    return run


def test_the_first_run_is_compared_with_every_other(tmp_path: Path) -> None:
    first = scored(tmp_path / "a", [0.5, 0.6, 0.7, 0.8])
    others = [scored(tmp_path / name, [0.3, 0.4, 0.5, 0.6]) for name in ("b", "c")]
    done = CliRunner().invoke(app, ["compare", *map(str, (first, *others))])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"val: a is better than {name}: gIoU +0.200 (95 % interval +0.200 to +0.200, 4 questions)"
        for name in "bc"
    ]
    turned = CliRunner().invoke(app, ["compare", str(others[0]), str(first)])
    assert turned.stdout.startswith("val: a is better than b: gIoU +0.200 (95 % interval +0.200")


def test_the_same_scores_are_no_close_call(tmp_path: Path) -> None:
    runs = [str(scored(tmp_path / name, [0.5, 0.6])) for name in "ab"]
    done = CliRunner().invoke(app, ["compare", *runs])
    assert done.stdout == "val: a and b score the same on each of 2 questions\n", done.stderr


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a"], "give two or more"), (["a", "none"], "there is no such run"),
     (["a", "other"], "no scores of the same split")],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(tmp_path: Path, names: list[str], said: str) -> None:
    scored(tmp_path / "a", [0.5])
    scored(tmp_path / "other", [0.5], "test")
    done = CliRunner().invoke(app, ["compare", *(str(tmp_path / name) for name in names)])
    assert done.exit_code == 2 and said in done.stderr
