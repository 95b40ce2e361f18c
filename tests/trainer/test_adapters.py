"""Adapters are PEFT's: its layers with our forward pass, its files, and what came before it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file
from torch import nn

from profiles.plan import Lora
from tests.conftest import PHOTOS, tiny_plan
from trainer.load import TRAINED
from trainer.model.adapters import NAME, AdaptedLinear, peft_config
from trainer.model.build import build, read_tokenizer
from trainer.start_cli import go_on

CPU = torch.device("cpu")
BEFORE = Path(__file__).parent / "before_peft"  # a run and an export of 0.1.0 before PEFT


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_our_forward_pass_is_pefts(dropout: float) -> None:
    config = peft_config(Lora(rank=4, alpha=12, dropout=dropout, targets="qv"))
    base = nn.Linear(32, 24, bias=False)
    pair: list[Any] = [kind(base, NAME, config=config, r=4, lora_alpha=12)
                       for kind in (AdaptedLinear, PeftLinear)]  # fmt: skip
    pair[0].begin(CPU)
    pair[0].lora_B[NAME].weight.data.normal_()
    pair[1].load_state_dict(pair[0].state_dict())
    x = torch.randn(2, 5, 32)
    outputs = []
    for layer in pair:
        torch.manual_seed(1)  # the same dropout
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for factor in ("lora_A", "lora_B"):
        ours, theirs = (getattr(layer, factor)[NAME].weight.grad for layer in pair)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    pair[0].enable_adapters(False)  # PEFT's switches work on it
    assert torch.equal(pair[0](x), base(x))


@pytest.mark.parametrize("storage", ["nf4", "int8", "none"])
def test_adapters_begin_at_the_base_model_in_fp32(storage: str) -> None:
    plan = tiny_plan(quantization=storage, dtype="bf16")
    model = build(plan, read_tokenizer(plan), CPU)
    adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    assert len(adapted) == 2 * 4 and model.llava.peft_config[NAME].r == 4
    for layer in adapted:
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        assert down.dtype == up.dtype == torch.float32 and not up.any()
        bound = down.shape[1] ** -0.5  # as a linear layer's
        assert 0.8 * bound < down.abs().max() <= bound


def test_an_older_run_goes_on_where_it_would_have(tmp_path: Path) -> None:
    """Its last two steps come out as its own code had them: adapters, moments, their order."""
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    go_on(run, PHOTOS, tmp_path / "cache", {})
    found = load_file(run / "last" / TRAINED)
    expected = load_file(BEFORE / "export" / TRAINED)
    began = load_file(BEFORE / "run" / "last" / TRAINED)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)
    adapters = [name for name in expected if "lora_" in name]
    moved = max(float((expected[name] - began[name]).abs().max()) for name in adapters)
    assert len(adapters) == 2 * 4 * 4 and moved > 5e-4  # far more than is allowed above
