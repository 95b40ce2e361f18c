"""lisa-train and lisa-segment as a user meets them: exit codes, messages, the whole path."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from accelerate.commands import accelerate_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.forked import run
from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.cli.conftest import Here
from trainer.answer.evaluate import run_sheet
from trainer.answer.question import Question
from trainer.answer.segmenter import Segmenter
from trainer.answer.trained_model import find_trained
from trainer.cli.console import user_errors
from trainer.cli.train_options import TrainOptions
from trainer.data.formats.reasonseg import read_split
from trainer.data.polygons import paint_mask
from trainer.reporter import Reporter
from trainer.run.metrics import MaskScores
from trainer.run.run import Run

QUIET = Reporter(lambda text: None, lambda what, done, total: None)


def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name(program)
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--check-data", str(PHOTOS)], 0, ""),
        (["--check-data", "no-such-folder"], 2, "no-such-folder"),
        (["--check-data", str(PHOTOS), "--set", "seed=1", "--lora-r", "4"], 2,
         "--check-data looks at data alone: leave out --lora-r, --set"),
        (["--auto", "--plan", "x.json"], 2, "one of the two"),
        (["--plan", "no-such.json", "--data-dir", "x"], 2, "no-such.json"),
        (["--resume", "no-such", "--output-dir", "x"], 2, "leave out --output-dir"),
        (["--resume", "no-such"], 2, "no-such: no such folder"),
        (["--model", "9b", "--data-dir", "x"], 2, "known: tiny"),
        (["--model", "tiny", "--set", "modell=tiny", "--data-dir", "x"], 2, "did you mean model"),
        (["--model", "tiny"], 2, "--data-dir"),
        (["--model", "tiny", "--data-dir", "no-such-folder"], 2, "no-such-folder"),
        (["--model", "7b", "--set", "device=cpu", "--set", "dtype=fp32", "--data-dir",
          str(PHOTOS)], 2, "lisa-advise doctor"),
        (["--model", "tiny", "--weights", "nowhere", "--data-dir", str(PHOTOS)], 2, "nowhere"),
        (["--resume", "x", "--model", "tiny", "--lora-r", "4"], 2, "leave out --model, lora.rank"),
        (["--resume", "x", "--set", "seed=1"], 2, "--epochs may grow, and --set may change"),
        (["--resume", "x", "--lora-r", "4"], 2, "a new run: lisa-train --data-dir DIR --plan "
         "x/plan.json --set lora.rank=4 --set lora.alpha=8; here --epochs may grow"),
        (["--resume", "x", "--weights", "random"], 2, "x: no such folder"),
        (["--resume", "x", "--set", "processes=2"], 2, "x: no such folder"),
        (["--resume", "x", "--set", "products=dtype"], 2, "x: no such folder"),
        (["--model", "tiny", "--gpus", "2", "--set", "device=cpu", "--data-dir", str(PHOTOS)], 2,
         "--gpus: got 2, and this training would be on the CPU"),
        (["--model", "tiny", "--set", "device=cpu", "--set", "dtype=fp16", "--data-dir",
          str(PHOTOS)], 2, "fp16 training needs a GPU (got fp16 on cpu)\n    hint: use fp32"),
        (["--no-such-flag"], 2, "no-such-flag"),
        (["synthesise", "no-such", "--train", "0"], 2, "--train"),
        (["synthesise", "no-such", "--val", "0"], 2, "--val"),
    ],
)  # fmt: skip
def test_exit_codes(arguments: list[str], code: int, message: str, here: Here) -> None:
    done = here(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr


def test_a_refused_file_is_told_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), user_errors():
        raise PermissionError(13, "Permission denied", "absent/.own.part")
    told = capsys.readouterr().err
    assert "absent/own: cannot be written: permission denied" in told and "Errno" not in told


@pytest.mark.parametrize("rank", [0, 1])
def test_of_a_group_one_says_that_it_was_interrupted(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(typer.Exit) as end, user_errors():
        raise KeyboardInterrupt("saved after step 3")
    assert end.value.exit_code == 130
    assert capsys.readouterr().err == ("saved after step 3\n" if rank == 0 else "")


def test_gpus_of_a_plan_or_a_run_on_the_cpu_are_refused(tmp_path: Path, here: Here) -> None:
    """Processes on the CPU would have been started for them; --set processes asks for those."""
    (tmp_path / "plan.json").write_text(tiny_plan().to_json())
    for how in (["--plan", str(tmp_path / "plan.json")], ["--resume", str(tmp_path)]):
        done = here(*how, "--gpus", "2", *(["--data-dir", str(PHOTOS)] * (how[0] == "--plan")))
        assert done.returncode == 2 and "--set processes=2 starts as many" in done.stderr


@pytest.mark.parametrize("entry", ["trainer.cli.__main__.train", "trainer.cli.__main__.segment",
                                   "advisor.cli.__main__.main"])  # fmt: skip
def test_ctrl_c_while_python_imports_is_an_interrupt(tmp_path: Path, entry: str) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    module, _, name = entry.rpartition(".")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    command = [sys.executable, "-c", f"{first}; from {module} import {name}; {name}()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("program", ["lisa-train", "lisa-segment", "lisa-advise"])
def test_no_flag_is_denied_twice(program: str) -> None:
    assert "--no-no" not in call(program, "--help").stdout


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_seeds_own_command_trains(tmp_path: Path) -> None:
    """The launcher is forked, and starts the training as a process."""
    log = tmp_path / "log"
    command = [
        "accelerate", "launch", "-m", "trainer.cli",
        "--epochs", "1", "--batch_size", "2", "--num_workers", "0", "--use_lora",
        "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0.0", "--grad_clip", "0.5",
        "--max_train_samples", "2", "--max_val_samples", "1", "--lr", "1e-4", "--seed", "3",
        "--data_dir", str(PHOTOS), "--output_dir", str(tmp_path / "run"),
        "--cache-dir", str(tmp_path / "cache"),
    ]  # fmt: skip

    def launch() -> None:
        sys.argv = command
        accelerate_cli.main()

    assert run(launch, log) == 0, log.read_text()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["lora"]["rank"], plan["micro_batch"], plan["seed"]) == (4, 2, 3)
    assert plan["schedule"]["grad_clip"] == 0.5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 1 and summary["after"]["images"] == 1
    assert (tmp_path / "run" / "overlay.png").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_auto_trains_without_a_gpu_and_speaks_in_plain_lines(tmp_path: Path, here: Here) -> None:
    run = tmp_path / "run"
    done = here(
        "--auto", "--epochs", "1", "--max-train-samples", "2",
        "--max-val-samples", "1", "--data-dir", str(PHOTOS), "--output-dir", str(run),
        "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "FITS: tiny on this machine's CPU" in done.stderr
    assert "\nepoch 1/1, loss " in done.stderr and "\x1b" not in done.stderr
    told = f"\nnext: lisa-train evaluate {run}, or lisa-segment PICTURE"
    assert told in done.stderr
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (step,) = [row for row in rows(run) if "loss" in row]
    assert 1 << 28 < step["memory_bytes"] < 1 << 33  # of this process, on the host
    assert [event.value for event in events.Scalars("loss")] == [pytest.approx(step["loss"])]
    gious = [row["giou"] for row in rows(run) if "giou" in row]
    assert len(gious) == 2
    assert [event.value for event in events.Scalars("giou")] == pytest.approx(gious)


@pytest.mark.slow
def test_photographs_are_learnt_by_heart(tmp_path: Path) -> None:
    """Real pictures through reader, cache, step, evaluation, checkpoint, overlay, lisa-segment."""
    # Two of them, one wording each, no explanation: masks are to be learnt here, in little time.
    items = [
        replace(item, texts=item.texts[:1], explanations=())
        for item in read_split(PHOTOS, "train", 2)
    ]
    plan = tiny_plan(
        quantization="nf4",
        cached_encoders=["mask", "vision"],
        lora={"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
        mask_loss_resolution=128,
        micro_batch=1,
        effective_batch=1,
        schedule={"learning_rate": 3e-3, "warmup_steps": 5, "epochs": 3, "shape": "linear"},
        seed=1,
    )
    run = Run(plan, items * 15, items, tmp_path, tmp_path / "cache", QUIET)
    summary = run.train()
    assert summary["before"]["giou"] < 0.3
    assert summary["best_giou"] >= 0.9
    assert run_sheet(run, tmp_path / "overlay.png", 7).stat().st_size > 100_000
    pictures, cache = [item.image_path for item in items], tmp_path / "cache"
    segmenter, scores = Segmenter(find_trained(tmp_path), pictures, cache), MaskScores()
    for item in items:
        answer = segmenter.ask(Question(item.image_path, item.texts[0], item.is_sentence))
        scores.add(item.name, answer.mask, paint_mask(item.polygons, *answer.mask.shape))
    assert scores.giou is not None and scores.giou >= 0.85
    # The same tensors under a GPU plan: a machine without one sets its levers aside.
    path = tmp_path / "best" / "plan.json"
    moved = Plan.read(path).override(["device=cuda", "compile=true", "optimizer=paged_adamw"])
    path.write_text(moved.override(["checkpointed_layers=4", "host_layers=3"]).to_json())
    asked = Question(item.image_path, item.texts[0], item.is_sentence)
    again = Segmenter(find_trained(tmp_path), pictures, cache).ask(asked)
    assert again.text == answer.text and np.array_equal(again.masks, answer.masks)


def test_cards_and_machines_are_the_plans_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainOptions(gpus=2).assignments() == ["processes=2", "nodes=1"]
    assert TrainOptions(gpus=2, nodes=3, seed=1).assignments() == [
        "processes=6", "nodes=3", "seed=1"
    ]  # fmt: skip
    assert TrainOptions(nodes=2).assignments() == ["processes=2", "nodes=2"]
    assert TrainOptions().assignments() == []
    started = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "a",
               "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "4"}  # fmt: skip
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert TrainOptions(nodes=2).assignments() == ["processes=8", "nodes=2"]
