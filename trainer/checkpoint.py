"""Checkpoints: the trained tensors alone, as safetensors, with the plan beside them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from profiles.plan import Plan


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or another plan's."""


def save(folder: Path, model: nn.Module, plan: Plan, facts: dict[str, Any]) -> None:
    """Write a checkpoint folder whole: aside first, then in the old one's place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run of the same number left
    aside.mkdir()
    tensors = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(tensors, aside / "trained.safetensors")
    (aside / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    (aside / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's tensors into a model built from its plan. Raises CheckpointError."""
    path = folder / "trained.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tensors.keys() != trained.keys():
        odd = sorted(tensors.keys() ^ trained.keys())[:5]
        raise CheckpointError(f"{path}: holds other tensors than its plan trains: {odd}")
    for name, parameter in trained.items():
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(f"{path}: {name} has shape {list(tensors[name].shape)}")
        parameter.data.copy_(tensors[name])


def read_facts(folder: Path) -> dict[str, Any]:
    """What the run recorded about a checkpoint; nothing where that is gone or damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
