"""Checkpoints: the trained tensors as safetensors, with the plan and the run's facts beside them.

A checkpoint to resume from holds the state of training as well. It is written under a temporary
name, forced to disk and renamed; checksums of all its files show later whether one is damaged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from profiles.files import force, opened, read_regular, reason
from profiles.plan import Plan
from trainer import adapter_files
from trainer.model.adapter_names import name_in_files
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.weights import WeightsError
from trainer.run.checkpoint_files import MANIFEST, altered, seal
from trainer.run.checkpoint_places import put_in_place, remove_leftovers
from trainer.run.folder import STATE, TRAINED
from trainer.run.nested_state import flat, nested
from trainer.run.write_failure import no_inode, write_failure
from trainer.tensor_files import save_file


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another plan."""


def save(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    facts: dict[str, Any],
    state: dict[str, Any] | None = None,
    earlier: Sequence[Path] = (),
) -> None:
    """Write a checkpoint under a temporary name, then rename it to `folder`.

    The checkpoint before moves to the first of `earlier`, that one to the second, and so on; the
    last is removed. Leftovers of killed saves are removed after that. `state` is the state of
    training, nested as `flat` allows. Raises NotWritten.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed run with the same process id
    try:
        aside.mkdir()
        _write(aside, trained_tensors(model), plan, facts, state)
    except OSError as error:
        size = sum(t.nbytes for t in trained_tensors(model).values())
        size += sum(t.nbytes for t in flat(state or {})[0].values())
        crowded = no_inode(folder.parent)  # before this save's own files go
        shutil.rmtree(aside, ignore_errors=True)
        raise write_failure(error, folder, size, crowded) from None
    put_in_place(aside, folder, earlier)
    remove_leftovers(folder)


def _write(
    folder: Path,
    tensors: dict[str, Tensor],
    plan: Plan,
    facts: dict[str, Any],
    state: dict[str, Any] | None,
) -> None:
    save_file(tensors, folder / TRAINED)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if state is not None:
        kept, rest = flat(state)
        save_file(kept, folder / STATE)
        (folder / "state.json").write_text(json.dumps(rest), encoding="utf-8")
    seal(folder)
    for path in folder.iterdir():
        force(path)
    force(folder)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by their names in files, on the host."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in trained_parameters(model).items()
    }


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by their names in files."""
    return {name_in_files(n): p for n, p in model.named_parameters() if p.requires_grad}


def read_trained(folder: Path, model: type[SegmentationModel]) -> dict[str, Tensor]:
    """The trained tensors of a checkpoint or an export, by their names in checkpoints.

    Raises CheckpointError.
    """
    try:
        return _tensors(folder / TRAINED) | adapter_files.read(folder, model)
    except WeightsError as error:
        raise CheckpointError(str(error)) from None


def load(folder: Path, model: SegmentationModel) -> None:
    """Put a checkpoint's tensors into a model built from its plan. Raises CheckpointError."""
    tensors = read_trained(folder, type(model))
    trained = trained_parameters(model)
    if tensors.keys() != trained.keys():
        odd = sorted(tensors.keys() ^ trained.keys())[:5]
        raise CheckpointError(
            f"{folder / TRAINED}: holds other tensors than its plan trains: {odd}"
        )
    for name, parameter in trained.items():
        if tensors[name].shape != parameter.shape:
            shape = list(tensors[name].shape)
            raise CheckpointError(f"{folder / TRAINED}: {name} has shape {shape}")
        parameter.data.copy_(tensors[name])


def load_state(folder: Path) -> dict[str, Any]:
    """The state of training, as it was saved. Raises CheckpointError."""
    try:
        rest = json.loads(read_regular(folder / "state.json"))
        # Copies: what a run keeps would map the file, which Windows then neither moves nor deletes.
        tensors = {name: one.clone() for name, one in _tensors(folder / STATE).items()}
        state = nested(tensors, rest)
        if isinstance(state, dict):
            return state
        raise ValueError(f"{type(state).__name__} instead of a dictionary")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{folder}: its state cannot be read: {reason(error)}") from None


@contextmanager
def state_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a state that cannot be restored into CheckpointError."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: its state is another training's: {reason(error)}"
        ) from None


def verify(folder: Path) -> None:
    """Raise CheckpointError if the tensors have changed; a folder without checksums passes.

    The plan beside them is not checked: users may edit it.
    """
    tensors = {TRAINED, adapter_files.CONFIG, adapter_files.TENSORS}
    if (folder / MANIFEST).exists() and (wrong := altered(folder, tensors)):
        raise CheckpointError(
            f"{folder}: {wrong}\n    hint: name another checkpoint of the run, such as "
            f"{folder.parent / 'last'}, or export it again"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with opened(path):  # its reader would wait for a pipe
            return load_file(path)
    except Exception as error:  # a changed header may raise anything in the reader
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
