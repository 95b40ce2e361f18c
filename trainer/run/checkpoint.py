"""Checkpoints: the trained tensors as safetensors, with the plan and the run's facts beside them.

A checkpoint to go on from holds the state of training as well. A folder is written aside, forced
to disk and renamed; its manifest has every file's checksum, so that a damaged one is known. A kill
between two renames leaves a whole one under a hidden name: which is the newest, its facts say.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from profiles.files import force, reason
from profiles.plan import Plan
from profiles.sizes import mib
from profiles.text import argument
from trainer import adapter_files
from trainer.atomic_folder import share
from trainer.model.adapter_names import name_in_files
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.weights import WeightsError
from trainer.run.folder import TRAINED

if TYPE_CHECKING:
    import torch

STATE, MANIFEST = "state.safetensors", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or another plan's."""


class NotWritten(RuntimeError):
    """A checkpoint that the system does not take; one from before is untouched."""


def save(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    facts: dict[str, Any],
    state: dict[str, Any] | None = None,
    earlier: Sequence[Path] = (),
) -> None:
    """Write a checkpoint folder whole: aside first, then in the old one's place.

    The old one goes to the first of `earlier`, that one to the second, and so on; the last goes.
    Only then is removed what killed saves left. `state`: of training, see `flat`.
    Raises NotWritten.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run of the same number left
    try:
        aside.mkdir()
        _write(aside, trained_tensors(model), plan, facts, state)
    except (OSError, SafetensorError) as error:
        size = sum(t.nbytes for t in trained_tensors(model).values())
        size += sum(t.nbytes for t in flat(state or {})[0].values())
        shutil.rmtree(aside, ignore_errors=True)
        raise _no_room(error, folder, size) from None
    _put(aside, folder, earlier)
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what kills left of a checkpoint, now that a whole one is in its place."""
    for left in hidden(folder):
        shutil.rmtree(left, ignore_errors=True)


def _put(new: Path, folder: Path, earlier: Sequence[Path]) -> None:
    """Rename `new` to `folder`; those before move on, and the last of them goes."""
    gone = folder.with_name(f".{folder.name}-old")
    places = [folder, *earlier]
    if new == gone:
        new = new.rename(folder.with_name(f".{folder.name}-0"))
    # Up to the first place that is empty: the rest need not move.
    moving = next((n for n, place in enumerate(places) if not place.exists()), len(places))
    if moving == len(places):
        shutil.rmtree(gone, ignore_errors=True)
    for newer, older in reversed(list(pairwise([*places, gone][: moving + 1]))):
        os.replace(newer, older)
    os.replace(new, folder)
    force(folder.parent)


def hidden(folder: Path) -> list[Path]:
    """What kills left of a checkpoint: half written, whole, or half removed."""
    return [path for path in folder.parent.glob(f".{folder.name}-*") if path.is_dir()]


def by_age(folder: Path, visible: Sequence[Path]) -> list[Path]:
    """The `visible` folders of a checkpoint, the newer first, and its hidden ones; newest first.

    The number of its save decides, which its facts hold; one without facts stays where its name
    puts it. An earlier version's have no number: there the step decides.
    """
    aside = hidden(folder)
    old = [path for path in aside if path.name.endswith("-old")]
    places = [*(path for path in aside if path not in old), *visible, *old]
    ages: list[tuple[float, float]] = [(math.inf, 0)]  # of what is written last
    for place in places:
        facts = read_facts(place)
        match facts.get("save", 0), facts.get("step"):
            case int(save), int(step):
                ages.append((save, step))
            case _:
                ages.append(ages[-1])
    order = sorted(range(len(places)), key=lambda n: ages[n + 1], reverse=True)  # stable
    return [places[n] for n in order if places[n].is_dir()]


def settle(good: Path, folder: Path, earlier: Sequence[Path] = ()) -> None:
    """Give a whole checkpoint that a kill left hidden its place; other leftovers go."""
    if good.name.startswith("."):
        _put(good, folder, earlier)
    _sweep(folder)


def mend(folder: Path) -> None:
    """Put a checkpoint back that a kill took away between two renames, if one is whole."""
    if folder.exists():
        return _sweep(folder)
    whole = [path for path in by_age(folder, []) if not altered(path)]
    if whole:
        settle(whole[0], folder)


def _write(
    folder: Path,
    tensors: dict[str, Tensor],
    plan: Plan,
    facts: dict[str, Any],
    state: dict[str, Any] | None,
) -> None:
    save_file(tensors, folder / TRAINED)
    share(folder / TRAINED)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if state is not None:
        kept, rest = flat(state)
        save_file(kept, folder / STATE)
        share(folder / STATE)
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


def flat(state: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """A nested state as tensors by path, and the same nesting with their paths in their places.

    Of dictionaries (their keys become text), lists, tensors, and what JSON knows.
    """
    if isinstance(state, Tensor):
        return {path: state.detach().cpu().contiguous().clone()}, {"tensor": path}
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        tensors: dict[str, Tensor] = {}
        rest = []
        for key, value in items:
            found, shape = flat(value, f"{path}/{key}")
            tensors |= found
            rest.append((str(key), shape))
        return tensors, dict(rest) if isinstance(state, dict) else [shape for _, shape in rest]
    return {}, state


def nested(tensors: dict[str, Tensor], rest: Any) -> Any:
    """What `flat` took apart."""
    if isinstance(rest, dict):
        if rest.keys() == {"tensor"} and isinstance(rest["tensor"], str):
            return tensors[rest["tensor"]]
        return {key: nested(tensors, value) for key, value in rest.items()}
    return [nested(tensors, value) for value in rest] if isinstance(rest, list) else rest


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
        rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = nested(_tensors(folder / STATE), rest)
        if isinstance(state, dict):
            return state
        raise ValueError(f"{type(state).__name__} in the place of a dictionary")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{folder}: its state cannot be read: {reason(error)}") from None


@contextmanager
def taken_up(folder: Path) -> Iterator[None]:
    """A state that no training can go on from, though its files are whole, is a CheckpointError."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        what = f"{type(error).__name__} {error}"
        raise CheckpointError(f"{folder}: its state is another training's: {what}") from None


def damage(folder: Path) -> str:
    """Why no training can go on from a checkpoint; '' if one can."""
    wrong = altered(folder)
    return wrong or ("" if (folder / STATE).is_file() else "holds no state to go on from")


def verify(folder: Path) -> None:
    """Raise CheckpointError if the tensors are not as written; a folder without checksums passes.

    The plan beside them is text that its user may have changed.
    """
    tensors = {TRAINED, adapter_files.CONFIG, adapter_files.TENSORS}
    if (folder / MANIFEST).exists() and (wrong := altered(folder, tensors)):
        raise CheckpointError(
            f"{folder}: {wrong}\n    hint: name another checkpoint of the run, such as "
            f"{folder.parent / 'last'}, or export it again"
        )


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files beside them."""
    sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def altered(folder: Path, only: Set[str] | None = None) -> str:
    """What is wrong with a checkpoint's files, by their checksums; '' if nothing is."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if only is not None and name not in only:
                continue
            if Path(name).name != name or _checksum(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{MANIFEST}: {error}"
    return "" if TRAINED in sums else f"{TRAINED} has no checksum"


def read_facts(folder: Path) -> dict[str, Any]:
    """What the run recorded about a checkpoint; nothing where that is gone or damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # an altered header may break its reader anywhere
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_room(error: Exception, folder: Path, size: int) -> NotWritten:
    """What stood in the way, by the system's own figures, and what a resume will find."""
    why, fix = _cause(error, folder.parent, size)
    if any((place / STATE).is_file() for place in folder.parent.iterdir()):
        kept = "the checkpoint before is whole"
    else:
        kept = "there is no earlier checkpoint, so it begins again"
    return NotWritten(
        f"{folder}: the checkpoint could not be written, {why}\n"
        f"    hint: {fix}, then lisa-train --resume {argument(folder.parent)}; {kept}"
    )


def _cause(error: Exception, place: Path, size: int) -> tuple[str, str]:
    """Why `size` bytes could not be written into `place`, and what would mend it."""
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors' only word of it
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    free = shutil.disk_usage(place).free
    if number == errno.EROFS:
        return "the file system is read-only", "have it mounted for writing"
    if number in (errno.EACCES, errno.EPERM):
        return f"permission denied ({error})", f"make {place} writable for you"
    if number == errno.EDQUOT:
        return f"your quota is used up: {mib(size)} needed", "delete what you can spare"
    if number == errno.ENOSPC and _no_inode(place):
        return (
            f"the disk takes no more files: no inode is free, though {mib(free)} are",
            "delete files, however small",
        )
    if number == errno.ENOSPC or free < size:
        return f"the disk is full: {mib(size)} needed, {mib(free)} free", "make room"
    return f"{error}: {mib(size)} needed, {mib(free)} free", "mend that"


def _no_inode(place: Path) -> bool:
    """Whether a file system that counts its inodes has none left; Windows has none to count."""
    if not hasattr(os, "statvfs"):
        return False
    counts = os.statvfs(place)
    return counts.f_files > 0 and counts.f_favail == 0
