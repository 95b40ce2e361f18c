"""Folders of published checkpoints, read one tensor at a time.

Only tensors are unpickled: `*.bin` and `*.pth` are read by torch's weights-only reader, mapped into
memory, so that only the requested tensors are read from disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from profiles.files import read_object, read_regular
from profiles.text import one_line, some
from trainer.model.families import Family, NamesError
from trainer.model.weights import WeightsError, fingerprint_of

PICKLES = ("pytorch_model*.bin", "*.pth")
# Files that trainers keep beside the weights, in any format; they are not weights.
STATE = re.compile(
    r"(rng_state|random_states?|optimi[sz]er|scheduler|scaler|training_args|trainer_state|zero_pp_rank"
    r"|(?:bf16_|fp16_)?zero_|global_step|early_stopping|sampler)(?:[_.\-\d].*|s)?",
    re.IGNORECASE,
)
LETTERS = 255  # of a file's name: no system has longer ones
WRAPPERS = ("model", "state_dict", "module")  # keys under which trainers save the tensors
SHARD = re.compile(r"(.+-)(\d{5})(-of-)(\d{5})(\..+)")
COMMIT = re.compile(r"[0-9a-f]{40}")


class TensorFile:
    """One file of tensors, whatever its format. Raises WeightsError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._safe: Any = None
        self._tensors: dict[str, Tensor] = {}
        try:
            if path.suffix == ".safetensors":
                self._safe = safe_open(path, framework="pt")
            else:
                self._tensors = _unwrapped(
                    torch.load(path, weights_only=True, mmap=True, map_location="cpu")
                )
        except Exception as error:  # a damaged or hostile file may raise anything in its reader
            raise WeightsError(_why_unreadable(path, error)) from None

    def headers(self) -> dict[str, tuple[torch.Size, str]]:
        """Shape and dtype by name."""
        if self._safe is None:
            return {name: (t.shape, str(t.dtype)) for name, t in self._tensors.items()}
        slices = {name: self._safe.get_slice(name) for name in self._safe.keys()}  # noqa: SIM118
        return {name: (torch.Size(s.get_shape()), s.get_dtype()) for name, s in slices.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of the tensor."""
        stored: Tensor = self._tensors[name] if self._safe is None else self._safe.get_tensor(name)
        return stored.to(dtype, copy=True).contiguous()


@dataclass(frozen=True)
class Found:
    """One tensor of a source, not read yet."""

    source: str  # the folder's name
    path: Path
    name: str
    shape: torch.Size
    dtype: str

    @property
    def where(self) -> str:
        """For messages: folder, file and name."""
        return f"{self.source}/{self.path.name}: {self.name}"


@dataclass
class Source:
    """A folder with a checkpoint: its tensors by the model's names, and its metadata."""

    folder: Path
    paths: list[Path]
    tensors: dict[str, Found] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)  # names that no model here uses

    @classmethod
    def read(
        cls, folder: Path, family: Family[Any], tell: Callable[[str], None] = lambda line: None
    ) -> Source:
        """Read the headers of all weights files; reports others through `tell`.

        Raises WeightsError.
        """
        source = cls(folder, weights_files(folder, tell))
        found: dict[str, Found] = {}
        for path in source.paths:
            for name, (shape, dtype) in TensorFile(path).headers().items():
                if name in found:
                    raise WeightsError(
                        f"{folder}: {name} is in both {found[name].path.name} and {path.name}; "
                        "keep the files of one checkpoint only"
                    )
                found[name] = Found(source.name, path, name, shape, dtype)
        try:
            targets = family.target_names(found)
        except NamesError as error:
            raise WeightsError(f"{folder}: {error}") from None
        for name, target in targets.items():
            if target is None:
                source.unused.append(name)
            else:
                source.tensors[target] = found[name]
        return source

    @property
    def name(self) -> str:
        """The folder's own name, without the path to it."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; empty if it is missing or unreadable."""
        return read_object(self.folder / "config.json")

    def facts(self) -> dict[str, Any]:
        """What identifies this source in the report."""
        kept = ("architectures", "model_type", "transformers_version")
        return {
            "name": self.name,
            "revision": self._revision(),
            "licence": licence_of(self.folder),
            "fingerprint": fingerprint_of(self.paths),
            "files": [path.name for path in self.paths],
            "config": {key: self.config[key] for key in kept if key in self.config},
        }

    def _revision(self) -> str | None:
        """The hub's commit, if the hub's tools recorded it beside the files."""
        if COMMIT.fullmatch(self.name):
            return self.name  # a snapshot folder of the hub's cache
        notes = self.folder / ".cache" / "huggingface" / "download"
        for note in sorted(notes.glob("*.metadata")):
            first = read_regular(note).decode("utf-8", "replace").partition("\n")[0].strip()
            if COMMIT.fullmatch(first):
                return first
        return None


def licence_of(folder: Path) -> str | None:
    """The licence that a checkpoint's card states in its first block, as on the hub; None: none."""
    try:
        card = read_regular(folder / "README.md").decode("utf-8", "replace")
    except OSError:
        return None
    head = card.split("---", 2)[1] if card.startswith("---") and card.count("---") > 1 else ""
    stated = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", head, re.MULTILINE)
    return stated[1] if stated else None


def weights_files(folder: Path, tell: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The folder's safetensors, or else its pickles, with all shards. Raises WeightsError.

    DeepSpeed's zero_to_fp32 makes a folder called pytorch_model.bin: it is used if no file has the
    weights. Other files are reported through `tell` and not read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise WeightsError(f"{folder}: {what}; a source is the folder of one checkpoint")
    safe, pickles = _files(folder, ("*.safetensors",)), _files(folder, PICKLES)
    inner = [p for p in _named(folder, ("*.safetensors", PICKLES[0])) if _holds_weights(p)]
    whole = any(path.match(PICKLES[0]) for path in pickles)
    if not safe and not whole and inner:
        if len(inner) > 1:
            names = ", ".join(f"{one_line(path.name)}/" for path in inner)
            raise WeightsError(f"{folder}: several folders hold weights: {names}; name one of them")
        tell(f"{folder}: reading the weights in its folder {inner[0].name}/")
        return weights_files(inner[0], tell) + pickles
    paths = safe or pickles
    if not paths:
        raise WeightsError(
            f"{folder}: no *.safetensors, pytorch_model*.bin or *.pth here{_elsewhere(folder)}; "
            "give the folder that holds the checkpoint's weights"
        )
    absent = sorted(_expected(folder, paths) - {path.name for path in paths})
    if absent:
        raise WeightsError(
            f"{folder}: {len(absent)} of the checkpoint's files are not here: "
            f"{some(name[:LETTERS] for name in absent)}; download the rest"
        )
    if safe and pickles:
        tell(f"{folder}: reading the *.safetensors; skipped: {_short(pickles)}")
    if inner:
        tell(f"{folder}: skipped: {_short(inner)}; name that folder to read it instead")
    return paths


def is_state(name: str) -> bool:
    """Whether a file of this name is hidden or a trainer's state, and so not weights."""
    return name.startswith(".") or STATE.fullmatch(name.rpartition(".")[0]) is not None


def _named(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files and folders with names of weights, each once."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if not is_state(path.name))


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for path in _named(folder, patterns) if not path.is_dir()]


def _holds_weights(place: Path) -> bool:
    return place.is_dir() and bool(_files(place, ("*.safetensors", *PICKLES)))


def _elsewhere(folder: Path) -> str:
    """Folders in this one that hold weights, for the message that this one holds none."""
    inner = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    inner = [path for path in inner if _holds_weights(path)]
    return f", but in {_short(inner)}" if inner else ""


def _short(paths: list[Path]) -> str:
    return some(path.name + "/" * path.is_dir() for path in paths)


def _expected(folder: Path, paths: list[Path]) -> set[str]:
    """The file names that an index or the numbering of the shards requires."""
    names: set[str] = set()
    for path in paths:
        if found := SHARD.fullmatch(path.name):
            start, _, of, count, end = found.groups()
            names |= {f"{start}{n:05}{of}{count}{end}" for n in range(1, int(count) + 1)}
    for index in folder.glob(f"*{paths[0].suffix}.index.json"):
        if index.name.startswith("."):
            continue
        listed = read_object(index).get("weight_map")
        named = listed.values() if isinstance(listed, dict) else ()
        names |= {name for name in named if isinstance(name, str)}
    return names


def _unwrapped(loaded: Any) -> dict[str, Tensor]:
    """The tensors in a pickle, without a trainer's wrapper; numbers are left out."""
    if isinstance(loaded, Mapping):
        for key in WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, not tensors by name")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error).partition("\n")[0][:200]
    where = f"{path.parent.name}/{path.name}"
    if "Weights only load failed" in text:
        # torch's text also says how to run the code in the file: that is not repeated.
        return (
            f"{where}: refused, it holds more than tensors and could run code when loaded; "
            "get the checkpoint as *.safetensors"
        )
    if "mmap" in text:
        return (
            f"{where}: torch's old format, which cannot be read in bounded memory; "
            "get the checkpoint as *.safetensors, or save it again with a current torch"
        )
    return f"{where}: cannot be read, damaged or cut short? ({text}); download it again"
