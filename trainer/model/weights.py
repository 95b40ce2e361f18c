"""Where a model's tensors come from: packaged, a folder of safetensors, or random values.

Tensors are handed out one at a time, so that quantising on arrival never holds two copies of a
model. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from profiles.plan import Plan
from profiles.text import some

RANDOM_BLOCK = 1 << 22  # values

# As safetensors and torch spell them. Any other dtype is packed and meaningless by itself.
PLAIN_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16"}
    | {f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16")}
)


class WeightsError(ValueError):
    """Weights are missing, unreadable or of other shapes; the message says how to fix it."""


@contextmanager
def legible(path: Path, fix: str = "") -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes its reader raise into a WeightsError."""
    try:
        yield
    except (WeightsError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a reader's Rust code is no Exception
        hint = f"\n    hint: {fix}" * bool(fix)
        raise WeightsError(f"{path}: cannot be read: {str(error)[:300]}{hint}") from None


class WeightSource(Protocol):
    """Tensors by name."""

    fingerprint: str

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The tensor called `name` on `device`, in `dtype` if it holds floating-point numbers.

        Raises WeightsError if absent or misshapen.
        """
        ...

    def finish(self, used: Iterable[str]) -> None:
        """Check the names that were used. Raises WeightsError if any tensor was not asked for."""
        ...


class FolderWeights:
    """Every `*.safetensors` file of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Hidden files are no weights: macOS leaves a ._x beside each x.
        paths = sorted(p for p in folder.glob("*.safetensors") if p.name[0] != "." and p.is_file())
        if not paths:
            raise WeightsError(f"{folder}: no *.safetensors file here; give a model folder")
        try:
            self._files = [safe_open(path, framework="pt") for path in paths]
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{folder}: a weights file cannot be read: {error}") from None
        self._owner = {name: f for f in self._files for name in f.keys()}  # noqa: SIM118
        self.fingerprint = fingerprint_of(paths)

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        if name not in self._owner:
            raise WeightsError(f"{self.folder}: tensor {name} is missing")
        with legible(self.folder / name):
            tensor: Tensor = self._owner[name].get_tensor(name)
        if tensor.shape != shape:
            raise WeightsError(
                f"{self.folder}: tensor {name} has shape {list(tensor.shape)}, "
                f"the model needs {list(shape)}"
            )
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    def finish(self, used: Iterable[str]) -> None:
        left = sorted(set(self._owner).difference(used))
        if left:
            raise WeightsError(
                f"{self.folder}: {len(left)} tensors have no place in the model: {some(left)}"
            )


class RandomWeights:
    """Values for rehearsals: memory and speed depend on shapes, not on what is in them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.fingerprint = f"random-{seed}"

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        if len(shape) == 1:
            value = 1.0 if name.endswith("weight") else 0.0
            return torch.full(shape, value, device=device, dtype=dtype)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
        scale = 1.0 if name.endswith("positional_embedding") else 0.02
        # Drawn where and as it is used: a 7B model of bf16 values never exists on the host. Large
        # tensors repeat one block: a CPU draws 20 M values a second.
        count = min(shape.numel(), RANDOM_BLOCK)
        block = torch.randn(count, generator=generator, device=device, dtype=dtype).mul_(scale)
        values = torch.empty(shape, device=device, dtype=dtype)
        flat, whole = values.view(-1), shape.numel() // count * count
        flat[:whole].view(-1, count).copy_(block)
        flat[whole:].copy_(block[: shape.numel() - whole])
        return values

    def finish(self, used: Iterable[str]) -> None:
        """Random values fit any name."""


class ShapesAlone:
    """Empty tensors, for counting: on the meta device, or fake ones on the CPU."""

    fingerprint = "shapes"

    def __init__(self, device: str = "meta") -> None:
        self.device = device

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=dtype)

    def finish(self, used: Iterable[str]) -> None:
        """Shapes fit any name."""


class DrawnShapes(ShapesAlone):
    """Empty tensors that take as much memory as `RandomWeights`: a tensor and the block in it."""

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        count = min(shape.numel(), RANDOM_BLOCK) if len(shape) > 1 else 0
        block = torch.empty(count, device=self.device, dtype=dtype)
        values = super().get(name, shape, device, dtype)
        del block  # it goes when the values are there
        return values


def fingerprint_of(paths: Iterable[Path]) -> str:
    """A fingerprint of a set of weights files, without reading all of their bytes."""
    identities = json.dumps([_identity(path) for path in paths])
    return hashlib.sha256(identities.encode()).hexdigest()[:16]


def _identity(path: Path) -> tuple[str, str]:
    """File name and a hash of its header and size: the header lists every tensor's place."""
    with path.open("rb") as file:
        head = file.read(8)
        header = file.read(min(int.from_bytes(head, "little"), 64 << 20))
        sample = hashlib.sha256(head + header)
        file.seek(0, 2)
        size = file.tell()
        # Values count too: three windows tell a retrained file of the same layout apart.
        for offset in (len(header) + 8, size // 2, max(0, size - (1 << 20))):
            file.seek(offset)
            sample.update(file.read(1 << 20))
    return path.name, f"{size}:{sample.hexdigest()}"


def packaged_folder() -> Path:
    """lisa-tiny's folder."""
    return Path(str(files("profiles") / "tiny"))


def model_folder(plan: Plan) -> Path:
    """The folder with a plan's tokenizer and weights, unless these are random.

    Raises WeightsError.
    """
    if plan.weights != "default":
        folder = Path(plan.weights).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder; weights must name a model folder\n"
                               "    hint: --set weights=FOLDER names one")  # fmt: skip
        return folder
    if plan.profile.packaged:
        return packaged_folder()
    sources = " and ".join(plan.profile.sources)
    raise WeightsError(
        f"model {plan.model}: no weights named; they are made of {sources}\n"
        f"    hint: {plan.profile.conversion}, then "
        "--weights FOLDER; or --weights random rehearses with random values"
    )


def weight_source(plan: Plan) -> WeightSource:
    """The plan's tensors. Raises WeightsError."""
    return (
        RandomWeights(plan.seed) if plan.weights == "random" else FolderWeights(model_folder(plan))
    )


def materialise(
    module: torch.nn.Module,
    source: WeightSource,
    device: torch.device,
    dtype: torch.dtype,
    prefix: str = "",
    done: Collection[str] = (),
    skip: tuple[str, ...] = (),
) -> list[str]:
    """Give every parameter and persistent buffer its value on `device`, except those in `done`.

    `prefix` is the module's own name in the source. Tensors whose names begin with one of `skip`
    share another tensor of the model and are left alone. Returns the names asked for.
    Raises WeightsError.
    """
    asked: list[str] = []
    for path, owner in module.named_modules():
        persistent = [b for b in owner._buffers if b not in owner._non_persistent_buffers_set]
        for name in [*owner._parameters, *persistent]:
            current = getattr(owner, name)
            full = prefix + (f"{path}.{name}" if path else name)
            if current is None or full in done:
                continue
            asked.append(full)
            if full.startswith(skip):
                continue
            value = source.get(full, current.shape, device, dtype)
            if name in owner._buffers:
                owner._buffers[name] = value
            else:
                owner._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
    return asked
