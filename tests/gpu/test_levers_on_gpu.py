"""The levers on a CUDA device: copies beside arithmetic, compiled layers, the whole run.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from profiles.environment import ALLOCATOR_VARIABLES
from profiles.measurement import Measurement
from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.model import test_model
from tests.trainer.test_shared_prefix import both
from trainer.answer.question import Question
from trainer.answer.segmenter import Segmenter
from trainer.answer.trained_model import Trained
from trainer.batch import Batch
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate
from trainer.model.build import build, read_tokenizer
from trainer.model.footprint import DoesNotFit
from trainer.model.layers.frozen import Nf4Linear
from trainer.model.layers.replayed import Replayed
from trainer.rehearse.real import Rehearsal
from trainer.reporter import Reporter
from trainer.run.run import Run
from trainer.step import training_step

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
MOST_NOISE = 3e-3  # relative, of gradients of equal runs
QUIET = Reporter(lambda text: None, lambda what, done, total: None)
SEVEN = {
    "model": "7b", "weights": "random", "device": "cuda", "dtype": "bf16", "micro_batch": 2,
    "accumulation": 1, "checkpointed_layers": 32,
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "qv"},
}  # fmt: skip


def gradients(**settings: object) -> dict[str, Tensor]:
    """Gradients of the first step of a rehearsed 7B plan, on the CPU."""
    rehearsal = Rehearsal(Plan.parse(SEVEN | settings), (64, 64), 1)
    model = rehearsal.accelerator.unwrap_model(rehearsal.model)
    found: dict[str, Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            found.update(
                {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}
            )

    keep = Keep([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batches = rehearsal.batches()
    training_step(rehearsal.model, batches, keep, rehearsal.plan, rehearsal.accelerator)
    return found


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, relative to the first's."""
    whole, apart = (torch.cat([g[n].flatten() for n in sorted(one)]) for g in (one, other))
    return float((whole - apart).norm() / whole.norm())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_streamed_layers_give_the_gradients_of_resident_ones(quantization: str) -> None:
    """A copy that came late, or over a layer still in use, would change them.

    Some kernels add up in no fixed order: on an H200 equal runs were the same bits or 8.7e-4 apart,
    so a pair that is the same shows no noise.
    """
    resident = gradients(quantization=quantization)
    noise = difference(resident, gradients(quantization=quantization))
    assert noise < 3e-2
    for count in (5, 32):
        streamed = gradients(quantization=quantization, host_layers=count)
        found = difference(resident, streamed)
        print(f"{quantization}, {count} host layers: {found:.2e}, two equal runs {noise:.2e}")
        assert found <= max(3 * noise, MOST_NOISE)


def tiny_gradients(**settings: object) -> dict[str, Tensor]:
    """Gradients of lisa-tiny, its own weights, on two photographs.

    Random weights differ between dtypes, and between a table drawn on the GPU and one on the CPU.
    """
    plan = tiny_plan(device="cuda", **settings)
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    batch = collate([samples[0], samples[3]], tokenizer).to(CUDA)
    found = test_model.gradients(build(plan, tokenizer, CUDA), batch)
    return {name: gradient.float().cpu() for name, gradient in found.items()}


def test_host_embeddings_give_the_gradients_of_resident_ones() -> None:
    resident, on_host = (tiny_gradients(host_embeddings=hosted) for hosted in (False, True))
    assert difference(resident, on_host) < 1e-3


def test_compiled_layers_give_the_gradients_of_plain_ones() -> None:
    """Fused, a layer rounds less often: the yardstick is how far bf16 is from fp32 at all."""
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}
    settings = {"checkpointed_layers": 2, "lora": lora}
    exact = tiny_gradients(**settings, dtype="fp32")
    plain, compiled = (
        difference(exact, tiny_gradients(**settings, dtype="bf16", compile=on))
        for on in (False, True)
    )
    print(f"from fp32: plain {plain:.2e}, compiled {compiled:.2e}")
    assert compiled < 1.2 * plain < 0.3


@pytest.mark.parametrize("compiled", [False, True])
def test_shared_rows_give_the_gradients_of_separate_ones(compiled: bool) -> None:
    """In bf16 either is far from fp32: shared rows no farther than separate ones."""
    settings = {"checkpointed_layers": 2, "lora": {"dropout": 0.0}}
    found = both(tiny_plan(device="cuda", **settings), [0, 3, 1], [2], [4, 1])
    fp32 = shared_gradients(found.separate, dtype="fp32", **settings)
    assert difference(fp32, shared_gradients(found.shared, dtype="fp32", **settings)) < 1e-3
    apart, together = (
        difference(fp32, shared_gradients(batch, dtype="bf16", compile=compiled, **settings))
        for batch in (found.separate, found.shared)
    )
    print(f"compiled {compiled}: from fp32 separate {apart:.2e}, shared {together:.2e}")
    assert together < 1.3 * apart < 0.3


def shared_gradients(batch: Batch, **settings: object) -> dict[str, Tensor]:
    plan = tiny_plan(device="cuda", **settings)
    model = build(plan, read_tokenizer(plan), CUDA)
    gradients = test_model.gradients(model, batch.to(CUDA))
    return {name: gradient.float().cpu() for name, gradient in gradients.items()}


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """A process has one precision; every test here is as in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.filterwarnings("error:Seems like `optimizer.step")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_photographs_train_on_the_gpu(tmp_path: Path, dtype: str) -> None:
    items = read_split(PHOTOS, "train", 2)
    plan = tiny_plan(
        device="cuda", dtype=dtype, quantization="nf4", cached_encoders=["mask", "vision"],
        checkpointed_layers=4, host_layers=2, host_embeddings=True,
        schedule={"learning_rate": 2e-3, "warmup_steps": 0, "epochs": 20, "shape": "constant"},
    )  # fmt: skip
    run = Run(plan, items, items[:1], tmp_path, tmp_path / "cache", QUIET)
    run.train()
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    found = [row["loss"] for row in rows if "loss" in row]
    assert found[-1] < 0.7 * found[0]
    assert (tmp_path / "best" / "trained.safetensors").is_file()


def test_a_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    items = read_split(PHOTOS, "train", 1)
    plan = Plan.parse(SEVEN | {"quantization": "none"})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    gc.collect()  # what earlier tests left must not go meanwhile
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(11.2 * 2**30 / total)
    try:
        with pytest.raises(DoesNotFit, match="GiB are free"):
            Run(plan, items, items, tmp_path, tmp_path / "cache", QUIET)
        assert torch.cuda.memory_allocated() == before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(
    ("planned", "expandable"), [("expandable_segments:True", True), ("", False)]
)
def test_the_plans_allocator_holds_once_the_libraries_are_imported(
    planned: str, expandable: bool
) -> None:
    """Importing them has torch read the variables, whatever a plan says afterwards."""
    code = (
        "from trainer.process import import_libraries, use_allocator; import_libraries()\n"
        "import torch; from tests.conftest import tiny_plan\n"
        f"use_allocator(tiny_plan(device='cuda', dtype='bf16', allocator={planned!r}))\n"
        "kept = torch.empty(1 << 26, device='cuda')\n"
        "print({segment['is_expandable'] for segment in torch.cuda.memory_snapshot()})"
    )
    shells = {name: "" for name in ALLOCATOR_VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True, env=os.environ | shells)  # fmt: skip
    assert done.stdout.split() == [f"{{{expandable}}}"]


def test_loading_takes_no_more_than_training(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(Plan.parse(SEVEN | {"micro_batch": 1}).to_json())
    plan = str(tmp_path / "plan.json")
    command = [sys.executable, "-m", "trainer.rehearse", plan, "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = Measurement.model_validate_json(done.stdout)
    assert measured.verdict == "FITS"
    assert measured.load_peak_bytes is not None and measured.peak_allocated_bytes is not None
    assert 0 < measured.load_peak_bytes <= measured.peak_allocated_bytes


@pytest.mark.parametrize("storage", ["none", "int8", "nf4"])
def test_a_recorded_step_says_what_plain_ones_say(storage: str) -> None:
    """In a CUDA graph, in one row after another, on this thread's own stream."""
    settings = {"model": "tiny", "device": "cuda", "dtype": "bf16", "cached_encoders": []}
    plan = tiny_plan(**settings, quantization=storage).override(["tokens.max_new_tokens=8"])
    before = torch.cuda.current_stream()
    segmenter = Segmenter(Trained(plan, None), [], Path())
    pictures = [item.image_path for item in read_split(PHOTOS, "val")][:3]
    asked = [Question(picture, "What is it?") for picture in pictures]
    recorded = [segmenter.ask(one) for one in asked]
    answering = segmenter.answering
    assert answering is not None and answering.replayed.graph is not None
    segmenter.read = []
    answering.replayed = Replayed(False)
    for one, found in zip(asked, recorded, strict=True):
        plain = segmenter.ask(one)
        assert plain.text == found.text and np.array_equal(plain.masks, found.masks)
    torch.cuda.set_stream(before)


def test_one_row_times_nf4_is_the_widened_product() -> None:
    """An answer's tokens take a kernel of their own; what they give is a question's arithmetic."""
    weight = torch.randn(512, 256, device=CUDA, dtype=torch.bfloat16)
    linear = Nf4Linear(weight)
    row = torch.randn(1, 1, 256, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        alone, among = linear(row), linear(row.expand(1, 8, 256).contiguous())[:, :1]
    assert alone.shape == (1, 1, 512)
    assert float((alone - among).norm() / among.norm()) < 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_quantised_after_they_are_written_on_any_stream(dtype: torch.dtype) -> None:
    """bitsandbytes quantises on the default stream alone; lisa-segment loads on another."""
    weight = torch.randn(11008, 4096, device=CUDA, dtype=dtype)
    usual = Nf4Linear(weight)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(CUDA)):
        late = torch.zeros_like(weight)
        torch.cuda._sleep(10**8)
        late.copy_(weight)
        found = Nf4Linear(late)
        for name in ("packed", "scales", "outer", "offset"):
            assert torch.equal(getattr(found, name), getattr(usual, name)), name
