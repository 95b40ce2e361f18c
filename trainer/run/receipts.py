"""Receipts: what a run counted of each lever of its plan.

A lever of a plan may silently have no effect: a library may have replaced a kernel, a variable of
the shell may have switched the compiler off. So a run's first step is checked: for example, layers
that run again are counted while they run, not read off the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiles.files import read_object
from profiles.plan import Plan
from trainer.model.layers.decoder import compiled_graphs
from trainer.model.layers.fp8 import Fp8DenseLinear, Fp8Int8Linear, Fp8Nf4Linear
from trainer.model.layers.frozen import Int8Linear, Nf4Linear, without_own_kernel
from trainer.model.layers.host import HostEmbedding, stored_tensors
from trainer.model.segmentation_model import SegmentationModel


@dataclass(frozen=True)
class Receipt:
    """A lever as planned and as counted."""

    lever: str
    planned: int | str
    counted: int | str

    @property
    def warning(self) -> str:
        """What differs; '' if nothing does."""
        if self.planned == self.counted:
            return ""
        return f"{self.lever}: {self.planned} planned, {self.counted} counted"


class Receipts:
    """The receipts of a run, of the first step that this process makes."""

    def __init__(self, plan: Plan, model: SegmentationModel) -> None:
        self.plan, self.model = plan, model
        self.rows: list[Receipt] = []

    @contextmanager
    def looking_at(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Count in the step inside."""
        graphs = compiled_graphs()
        with _layer_runs(self.model, self.plan.compile) as runs:
            yield
        graphs = compiled_graphs() - graphs
        plan, model = self.plan, self.model
        self.rows = [*_layers(plan, model, runs, graphs), *_storage(plan, model),
                     *_moments(plan, optimizer)]  # fmt: skip

    def read(self, path: Path) -> None:
        """Take in what an earlier process counted, if this one has made no step."""
        if self.rows:
            return
        with suppress(OSError, ValueError, LookupError, TypeError):  # damaged, it says nothing
            self.rows = [Receipt(**row) for row in read_object(path)["receipts"]]

    def warnings(self) -> list[str]:
        """Levers that did not act as planned."""
        return [row.warning for row in self.rows if row.warning]

    def document(self) -> list[dict[str, Any]]:
        """As the run's record has them."""
        return [asdict(row) for row in self.rows]


# Storage and products of each kind of frozen linear.
KINDS: dict[type[nn.Module], tuple[str, str]] = {
    Nf4Linear: ("nf4", "dtype"), Int8Linear: ("int8", "dtype"), nn.Linear: ("none", "dtype"),
    Fp8Nf4Linear: ("nf4", "fp8"), Fp8Int8Linear: ("int8", "fp8"), Fp8DenseLinear: ("none", "fp8"),
}  # fmt: skip


@contextmanager
def _layer_runs(model: SegmentationModel, compiled: bool) -> Iterator[Counter[int]]:
    """Count how often each decoder layer runs inside the block; at -1, how often the decoder does.

    Compiled layers are left out: a hook would make them compile again.
    """
    runs: Counter[int] = Counter()

    def count(index: int, *_: object) -> None:
        runs[index] += 1

    rotary: Any = model.decoder.rotary_emb
    watched = [] if compiled else [(-1, rotary), *enumerate(model.decoder_layers)]
    hooks = [module.register_forward_pre_hook(partial(count, index)) for index, module in watched]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def _layers(
    plan: Plan, model: SegmentationModel, runs: Counter[int], graphs: int
) -> Iterator[Receipt]:
    """Layers that were copied from the host, recomputed, or compiled."""
    if plan.compile:
        yield Receipt("compiled graphs", graphs or "1 or more", graphs)
    else:
        again = sum(runs[index] == 2 * runs[-1] for index in range(len(model.decoder_layers)))
        yield Receipt("checkpointed_layers", plan.checkpointed_layers, again)
    copied = 0 if model.host_layers is None else len(model.host_layers.copied)
    yield Receipt("host_layers", plan.host_layers, copied)


def _storage(plan: Plan, model: SegmentationModel) -> Iterator[Receipt]:
    """The storage of the frozen weights, their place, and which encoders are not loaded."""
    found = {
        KINDS[type(owner)]
        for layer in model.decoder_layers
        for owner, _ in stored_tensors(layer)
        if type(owner) in KINDS and not any(p.requires_grad for p in owner.parameters())
    }
    storages, products = (", ".join(sorted({kind[n] for kind in found})) for n in (0, 1))
    yield Receipt("quantization", plan.quantization, storages)
    yield Receipt("products", plan.products, products)
    if plan.device == "cuda":
        slow = ", ".join(without_own_kernel(plan.quantization, "CUDA"))
        yield Receipt("kernels that stand in", "none", slow or "none")
    hosted = any(isinstance(module, HostEmbedding) for module in model.modules())
    yield Receipt("host_embeddings", str(plan.host_embeddings), str(hosted))
    for encoder, place in model.encoders_at.items():
        prefix = f"{place}."
        loaded = sum(
            t.numel() > 0 for name, t in model.named_parameters() if name.startswith(prefix)
        )
        planned = "not loaded" if encoder in plan.cached_encoders else "loaded"
        yield Receipt(f"{encoder} encoder", planned, "loaded" if loaded else "not loaded")


def _moments(plan: Plan, optimizer: torch.optim.Optimizer) -> Iterator[Receipt]:
    """How Adam's moments are kept: small tensors of an 8-bit optimizer stay in fp32."""
    kept = [value for of in optimizer.state.values() for value in of.values()]
    eight = any(isinstance(value, Tensor) and value.dtype == torch.uint8 for value in kept)
    yield Receipt("optimizer_state", plan.optimizer_state, "8bit" if eight else "fp32")
    if plan.optimizer == "paged_adamw":
        paged = any(getattr(value, "is_paged", False) for value in kept)
        yield Receipt("optimizer", plan.optimizer, plan.optimizer if paged else "adamw")
