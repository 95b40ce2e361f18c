"""The first steps of somebody who has read no page: what is typed without thought, and its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advisor import dry_run
from advisor.advice import Advice
from advisor.cli.main import app
from advisor.machine import probe
from advisor.machine.gpu import Gpu
from advisor.memory.forecast import counted_by
from profiles.plan import Plan
from profiles.sizes import GIB
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.cli.conftest import Here
from trainer.cli import planned_run
from trainer.data.formats.reasonseg import read_split
from trainer.reporter import Reporter
from trainer.run import sample_sets
from trainer.run.run import Run
from trainer.run.validation import outcome

QUIET = Reporter(lambda text: None, lambda what, done, total: None)
SHIPPED = "LLaMA's vocabulary, shipped"
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU alone does")


def quick(tmp_path: Path) -> list[str | Path]:
    """Options of a run that takes seconds."""
    return [
        "--data-dir", PHOTOS, "--max-train-samples", "2", "--max-val-samples", "1",
        "--cache-dir", tmp_path / "cache",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------ no plan named


@WITHOUT_GPU
@pytest.mark.parametrize("how", [[], ["--auto"], ["--set", "device=cpu", "--set", "dtype=fp32"]])
@pytest.mark.parametrize("model", ["7b", "13b"])
def test_a_large_model_is_not_trained_on_a_cpu(
    tmp_path: Path, model: str, how: list[str], here: Here
) -> None:
    run = tmp_path / "run"
    done = here("--model", model, *how, "--data-dir", PHOTOS, "--output-dir", run)
    assert done.returncode == 2, done.stderr
    assert "needs a GPU" in done.stderr and "lisa-advise doctor" in done.stderr
    assert not run.exists()


def test_nor_by_a_plan_file(tmp_path: Path, here: Here) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"model": "7b", "device": "cpu", "dtype": "fp32"}))
    options = "--model", "13b", "--data-dir", PHOTOS, "--output-dir", tmp_path / "run"
    done = here("--plan", plan, *options)
    assert done.returncode == 2 and "lisa-advise doctor" in done.stderr, done.stderr
    assert "note: this plan is of 7b: " in done.stderr


@WITHOUT_GPU
def test_auto_says_what_to_do_about_settings_that_nobody_tried(tmp_path: Path, here: Here) -> None:
    """It ends there; without --auto lisa-tiny tries them."""
    untried = ["--auto", "--model", "tiny", "--set", "products=fp8"]
    done = here(*untried, "--data-dir", PHOTOS, "--output-dir", tmp_path / "run")
    assert done.returncode == 3 and "hint: leave out --set, or try" in done.stderr, done.stderr


@WITHOUT_GPU
def test_a_missing_card_is_told_before_missing_weights(tmp_path: Path, here: Here) -> None:
    """Whoever lacks both would else convert 14 GiB first, and then be refused."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"model": "7b", "device": "cuda"}))
    done = here("--plan", plan, *quick(tmp_path), "--output-dir", tmp_path / "run")
    assert done.returncode == 2 and "torch sees none" in done.stderr, done.stderr
    assert "lisa-train convert" not in done.stderr


@WITHOUT_GPU
@pytest.mark.parametrize("wrong", ["data-dir", "weights", "adapter", "cache-dir"])
def test_what_would_be_refused_later_is_refused_before_a_dry_run(
    wrong: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dry run takes minutes on the card; without it the start would name the same fault."""
    card = Gpu(index=0, name="NVIDIA GeForce RTX 3090", compute_capability=(8, 6),
               total_bytes=24 * GIB, free_bytes=23 * GIB, uuid="GPU-a")  # fmt: skip
    other = card.model_copy(update={"index": 1, "uuid": "GPU-b", "free_bytes": 4 * GIB})
    machine = probe.probe().model_copy(update={"gpus": (card, other)})
    monkeypatch.setattr(probe, "probe", lambda: machine)
    tried: list[Advice] = []
    monkeypatch.setattr(dry_run, "measured", lambda advice, tell: tried.append(advice) or advice)
    places = {name: tmp_path / name for name in ("data-dir", "weights", "adapter", "cache-dir")}
    shutil.copytree(PHOTOS, places["data-dir"])
    next((places["data-dir"] / "ReasonSeg" / "val").glob("*.json")).write_text("{")
    places["weights"].mkdir()
    places["adapter"].mkdir()
    places["cache-dir"].touch()
    options = {"--data-dir": PHOTOS} | {f"--{wrong}": places[wrong]}
    start = ["--auto", "--model", "tiny", "--output-dir", tmp_path / "run"]
    done = here(*start, *chain(*options.items()))
    assert done.returncode == 2 and "error: " in done.stderr, done.stderr
    assert str(places[wrong]) in done.stderr, done.stderr
    assert not tried and not (tmp_path / "run").exists()
    seen: list[dict[str, str]] = []  # by the libraries, which look for cards
    monkeypatch.setattr(planned_run, "import_libraries", lambda: seen.append(dict(os.environ)))
    names = "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    with monkeypatch.context() as shell:
        for name in names:
            shell.setenv(name, "")  # which is restored
            shell.delenv(name)
        here(*start, "--data-dir", PHOTOS)
    assert tried[0].environment.keys() == set(names)
    assert tried[0].environment.items() <= seen[0].items()


def test_older_flags_pin_settings_of_the_advised_plan(tmp_path: Path, here: Here) -> None:
    run = tmp_path / "run"
    done = here(
        *quick(tmp_path), "--output-dir", run, "--model", "tiny", "--use_lora", "--lora_r", "4",
        "--batch_size", "2", "--epochs", "1", "--prefer", "headroom",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no --plan given: training the one that lisa-advise chooses" in done.stderr
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["lora"]["rank"], plan["micro_batch"], plan["schedule"]["epochs"]) == (4, 2, 1)
    assert plan["lora"]["alpha"] == 8, "as in lisa-advise; it was left at 16"
    assert "note: --lora-r 4 makes alpha 8; --lora-alpha sets another" in done.stderr
    # The rest is the advice's, not a plan of its own.
    assert (plan["effective_batch"], plan["cached_encoders"]) == (8, ["mask", "vision"])
    started = json.loads((run / "run.json").read_text())
    assert {"lora", "micro_batch"} <= set(started["pinned"])
    assert started["prefer"] == "headroom", "what it falls back on, too"
    assert (run / "advice.json").is_file()


@WITHOUT_GPU
def test_untested_settings_of_lisa_tiny_are_tried_but_not_by_auto(
    tmp_path: Path, here: Here
) -> None:
    odd = [*quick(tmp_path), "--model", "tiny", "--epochs", "1", "--set", "quantization=int8"]
    odd += ["--batch-size", "1"]
    assert here(*odd, "--auto", "--output-dir", tmp_path / "auto").returncode == 3
    done = here(*odd, "--output-dir", tmp_path / "run")
    assert done.returncode == 0 and "UNKNOWN: " in done.stderr, done.stderr


# ------------------------------------------------------------------------------------- what it says


def test_the_end_tells_the_best_epoch_apart_from_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`best` is what answers: a run that got worse must not seem to have come to nothing."""
    items = read_split(PHOTOS, "train", 1)
    run = Run(tiny_plan(schedule={"epochs": 3}), items, items, tmp_path, tmp_path / "c", QUIET)
    gious = iter((0.002, 0.02, 0.055, 0.004))
    monkeypatch.setattr(run, "evaluate", lambda _: {"giou": next(gious), "ciou": 0.01, "images": 6})
    summary = run.train()
    best = summary["best"]
    assert (best["giou"], best["epoch"], summary["best_giou"]) == (0.055, 2, 0.055)
    told = [line.split(" over ") for line in outcome(summary, tmp_path)]
    assert [head for head, _ in told] == [
        "before  gIoU 0.002, cIoU 0.010", "best    gIoU 0.055, cIoU 0.010",
        "last    gIoU 0.004, cIoU 0.010",
    ]  # fmt: skip
    assert f"epoch 2 of 3, in {tmp_path / 'best'}" in told[1][1] and "epoch 3" in told[2][1]
    # A run that resumes after its best epoch still knows it.
    again = Run(run.plan, items, items, tmp_path, tmp_path / "c", QUIET)
    assert again.train(tmp_path / "last")["best"] == best


def test_the_end_says_when_training_did_not_help(tmp_path: Path) -> None:
    before, better, worse = (
        {"giou": giou, "ciou": 0.01, "images": 6} for giou in (0.03, 0.05, 0.0)
    )
    for best, helped in ((better, True), (worse, False)):
        summary = {"before": before, "best": best | {"epoch": 1}, "after": worse, "epochs": 3}
        told = outcome(summary, tmp_path)
        assert any("no epoch was better" in line for line in told) is not helped, told


# ------------------------------------------------------------------------------------ run folders


Planted = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, here: Here) -> Planted:
    """`here`, with an error that comes while features are built."""

    def called(error: BaseException, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        def wrong(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(sample_sets, "prepare_caches", wrong)
            return here(*arguments)

    return called


@pytest.fixture
def options(tmp_path: Path) -> list[str | Path]:
    plan = tiny_plan(max_train_samples=2, max_val_samples=1, cached_encoders=["mask"])
    (tmp_path / "plan.json").write_text(plan.to_json())
    return [
        "--plan", tmp_path / "plan.json", "--data-dir", PHOTOS,
        "--cache-dir", tmp_path / "cache",
    ]  # fmt: skip


def test_ctrl_c_before_the_training_names_what_goes_on(
    tmp_path: Path, options: list[str | Path], planted: Planted, here: Here
) -> None:
    run = tmp_path / "my run"
    done = planted(KeyboardInterrupt(), *options, "--output-dir", run)
    assert done.returncode == 130, done.stderr
    assert f"lisa-train --resume '{run}' starts it" in done.stderr
    again = here("--resume", run)  # and what it names works
    assert again.returncode == 0 and (run / "summary.json").is_file(), again.stderr


def test_a_start_that_fails_leaves_no_run_folder(
    tmp_path: Path, options: list[str | Path], planted: Planted
) -> None:
    run = tmp_path / "run"
    assert planted(ValueError("no"), *options, "--output-dir", run).returncode == 2
    assert not run.exists()
    run.mkdir()  # one that the user has made stays, empty
    assert planted(RuntimeError("no"), *options, "--output-dir", run).returncode == 1
    assert run.is_dir() and not any(run.iterdir())
    # A run that goes on is not taken away.
    planted(KeyboardInterrupt(), *options, "--output-dir", run)
    assert planted(RuntimeError("no"), "--resume", run).returncode == 1
    assert (run / "plan.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("import", "nowhere.json", "a/b"),
        ("synthesise", "a/b", "--kind", "nonsense"),
        ("convert", "nowhere", "a/b", "--model", "7b"),
        ("export", "nowhere", "a/b"),
        ("evaluate", "nowhere", "--data-dir", str(PHOTOS), "--out", "a/b"),
        ("evaluate", "run", "--data-dir", str(PHOTOS), "--out", "a/b"),
        ("preview", "nowhere", "--out", "a/b.png"),
        ("--plan", "nowhere.json", "--data-dir", str(PHOTOS), "--output-dir", "a/b"),
        ("--model", "tiny", "--data-dir", "nowhere", "--cache-dir", "c/d"),  # runs/latest
    ],
)
def test_a_command_that_fails_at_its_start_leaves_no_folder(
    command: tuple[str, ...], here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("a/b: no")

    monkeypatch.chdir(tmp_path)
    if "run" in command:  # which has trained, and cannot be loaded
        monkeypatch.setattr("trainer.answer.trained_model.find_trained", lambda *_: None)
        monkeypatch.setattr("trainer.cli.results.planned", lambda *_: (None, None))
        monkeypatch.setattr("trainer.answer.segmenter.Segmenter", fails)
    done = here(*command)
    assert done.returncode == 2, done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("held", ["run.json", "plan.json", "notes.txt"])
def test_runs_are_not_mixed(
    tmp_path: Path, options: list[str | Path], held: str, here: Here, monkeypatch: Any
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / held).write_text("{}")
    done = here(*options, "--output-dir", run)
    assert done.returncode == 2, done.stderr
    assert f"{run} exists already" in done.stderr
    assert f"--output-dir {run}-2" in done.stderr
    assert ("--resume" in done.stderr) == (held == "run.json")
    assert [path.name for path in run.iterdir()] == [held]
    if held == "plan.json":
        return
    # The usual name gets a number, said before anything else.
    latest = tmp_path / "runs" / "latest"
    latest.mkdir(parents=True)
    (latest / held).write_text("{}")
    monkeypatch.chdir(tmp_path)
    done = here(*options)  # that libraries say nothing earlier, test_borrowed_surroundings shows
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"{Path('runs/latest')} holds an earlier run")
    assert (tmp_path / "runs" / "latest-2" / "summary.json").is_file()
    assert [path.name for path in latest.iterdir()] == [held]


# ------------------------------------------------------------------------------------ what counted


@pytest.fixture
def advise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsals_here: None
) -> Callable[..., str]:
    """What lisa-advise answers, in this process and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")

    def called(*arguments: str | Path) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments)], prog_name="lisa-advise")
        assert done.exit_code == 0, done.output
        return done.stdout

    return called


def test_text_that_the_shipped_vocabulary_counted_is_said_to_be(
    tmp_path: Path, advise: Callable[..., str]
) -> None:
    """Without weights too a sample is as long as the language model reads it."""
    data = ["--data-dir", PHOTOS, "--vram", "8GiB"]
    advice = json.loads(advise("--model", "7b", *data, "--json"))
    assert advice["counted_by"] == SHIPPED and advice["needs"]["source"].endswith(f"by {SHIPPED}")
    why = {reason["setting"]: reason["because"] for reason in advice["reasons"]}["micro_batch"]
    assert f"197 text tokens (counted by {SHIPPED})" in why
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(advice["plan"]))
    # The same question again is read from the cache.
    assert f"text counted by {SHIPPED}" in advise("forecast", plan, *data)
    assert json.loads(advise("forecast", plan, *data, "--json"))["counted_by"] == SHIPPED
    without = json.loads(advise("--model", "7b", "--vram", "8GiB", "--json"))
    assert without["counted_by"] == "" and "counted" not in without["needs"]["source"]


def test_the_models_own_tokenizer_counts_where_its_weights_are_named() -> None:
    named = Plan.parse({"model": "7b", "device": "cuda", "weights": "/models/7b"})
    assert counted_by(named, PHOTOS) == "the model's own tokenizer"
    assert counted_by(named, None) == ""
    for weights in ("default", "random"):
        assert counted_by(named.override([f"weights={weights}"]), PHOTOS) == SHIPPED
