"""Qwen3-VL and SAM 2 in small, from training to answering, by the commands alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from typer import Typer
from typer.testing import CliRunner

from advisor.inference import NoRoom
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan
from tests.conftest import PHOTOS
from tests.small_qwen import Uneven, forget, register, small
from trainer.answer.question import Question
from trainer.answer.segmenter import Segmenter
from trainer.answer.trained_model import Trained, find_trained
from trainer.cli.segment import app as segment
from trainer.cli.segment import planned
from trainer.cli.train import app as train
from trainer.model.build import build, read_tokenizer, save_model
from trainer.model.weights import weight_source
from trainer.run import checkpoint

PICTURE = next((PHOTOS / "ReasonSeg").glob("train/*.jpg"))
QUESTION = "What is red?"


@pytest.fixture(autouse=True)
def the_small_one_is_known() -> Iterator[None]:
    """As a packaged size, which may train on a CPU."""
    register(small(sources=("packaged",)))
    yield
    forget()


def run(app: Typer, *arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if "--json" in arguments else done.output


def written_plan(folder: Path, **more: object) -> Path:
    """NF4 with caches, recomputed and host layers, on weights of random values."""
    plain = Plan.parse({
        "model": "small-qwen", "weights": "random", "device": "cpu", "dtype": "fp32",
        "quantization": "none", "lora": None, "train": ["mask_decoder"], "cached_encoders": [],
    })  # fmt: skip
    tokenizer, weights = read_tokenizer(plain), folder / "weights"
    model = build(plain, tokenizer, torch.device("cpu"), Uneven(0))
    save_model(model, weights, torch.bfloat16)
    tokenizer.tokenizer.backend_tokenizer.save(str(weights / "tokenizer.json"))
    settings = {
        "weights": str(weights), "quantization": "nf4", "micro_batch": 2, "effective_batch": 2,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "mask_loss_resolution": 64,
        "train": ["mask_decoder", "text_hidden_fcs", "token_rows"], "checkpointed_layers": 3,
        "host_layers": 1, "tokens": {"max_new_tokens": 6}, "cached_encoders": ["mask", "vision"],
        "schedule": {"learning_rate": 1e-3, "warmup_steps": 0, "epochs": 1},
    }  # fmt: skip
    given = plain.model_dump(mode="json") | {"accumulation": None}
    path = folder / "plan.json"
    path.write_text(Plan.parse(given | settings | more).to_json())
    return path


def test_it_trains_exports_merges_and_answers(tmp_path: Path) -> None:
    plan, made = written_plan(tmp_path), tmp_path / "run"
    data = ["--data-dir", PHOTOS, "--cache-dir", tmp_path / "cache"]
    said = run(train, "--plan", plan, *data, "--output-dir", made)
    assert "sam2 features" in said and "qwen3-vision features" in said
    losses = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in row for row in losses) == 4
    assert "this run is complete" in run(train, "--resume", made, *data[:2])
    assert "over 3 questions" in run(train, "evaluate", made, *data[:2], "--split", "val")
    run(train, "export", made, tmp_path / "export")
    run(train, "export", made, tmp_path / "merged", "--merge")
    asked = [PICTURE, QUESTION, "--json", "--out", tmp_path / "out", "--run"]
    # Random weights never say [SEG]: no mask, exit code 1.
    answers = {
        name: json.loads(run(segment, *asked, tmp_path / name, *more, code=1))
        for name, more in (("run", []), ("merged", []),
                           ("export", ["--set", f"weights={tmp_path / 'weights'}"]))
    }  # fmt: skip
    texts = {name: said["answers"][0]["answer"] for name, said in answers.items()}
    assert texts["run"] == texts["export"] and texts["merged"]


def saying_seg(plan: Path, folder: Path) -> Path:
    """A run whose adapters and heads have moved, and whose model answers with [SEG].

    Random weights never do: the token's row is put where the states of an answer are.
    """
    facts = {"step": 1, "base": weight_source(chosen := Plan.read(plan)).fingerprint}
    model = build(chosen, read_tokenizer(chosen), torch.device("cpu"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or "text_hidden_fcs" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    checkpoint.save(folder / "best", model, chosen, facts)
    segmenter = Segmenter(find_trained(folder), [PICTURE], folder.parent / "cache")
    states: list[torch.Tensor] = []
    with mock.patch.object(segmenter.model, "for_head", lambda one: states.append(one) or one):
        segmenter.ask(Question(PICTURE, QUESTION))
    rows = dict(segmenter.model.named_parameters())
    (table,) = (value for name, value in rows.items() if name.endswith("embed_tokens.rows"))
    place = segmenter.tokenizer.new_ids.index(segmenter.tokenizer.seg_id)
    table.data[place] = 20 * functional.normalize(states[0][0].float(), dim=-1)
    checkpoint.save(folder / "best", segmenter.model, chosen, facts)
    return folder


def test_a_run_its_export_and_the_merged_model_give_the_same_masks(tmp_path: Path) -> None:
    """As `lisa-segment` writes them; merged weights are summed in another order."""
    made = saying_seg(written_plan(tmp_path, quantization="none"), tmp_path / "run")
    run(train, "export", made, tmp_path / "export")
    run(train, "export", made, tmp_path / "merged", "--merge")
    base = ["--set", f"weights={tmp_path / 'weights'}"]
    found = {}
    short = ["--set", "tokens.max_new_tokens=6"]
    for name, more in (("run", []), ("export", base), ("merged", short)):
        asked = [PICTURE, QUESTION, "--out", tmp_path / f"of-{name}", "--run", tmp_path / name]
        assert "[SEG]" in run(segment, *asked, *more)
        files = sorted((tmp_path / f"of-{name}").glob("*.mask*.png"))
        found[name] = [np.asarray(Image.open(file)) for file in files]
    with Image.open(PICTURE) as picture:
        assert found["run"][0].shape == picture.size[::-1]
    assert len(found["run"]) == len(found["export"]) == len(found["merged"]) > 0
    for whole, exported, merged in zip(*found.values(), strict=True):
        assert np.array_equal(whole, exported)
        assert np.mean(whole != merged) < 1e-3
    assert any(0 < mask.mean() < mask.max() for mask in found["run"])


def test_answering_is_forecast_for_the_largest_picture_that_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the largest one that the plan allows."""
    seen: list[Worst] = []

    def fitting(plan: Plan, may_round: bool, worst: Worst, *_: object) -> None:
        seen.append(worst)
        raise NoRoom

    monkeypatch.setattr("advisor.inference.fitting", fitting)
    plan = Plan.parse({"model": "qwen3-vl-2b", "weights": "random", "device": "cuda"})
    sizes = {"a.png": (320, 320), "b.png": (960, 640)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    # The smallest picture that the model looks at, and one of 30 x 20 tokens, rounded up.
    for asked, tokens in ((["a.png"], 448), (["a.png", "b.png"], 640)):
        with pytest.raises(NoRoom):
            planned(Trained(plan, None), [Question(tmp_path / name, QUESTION) for name in asked])
        assert seen[-1].image_tokens == tokens < plan.profile.most_image_tokens
