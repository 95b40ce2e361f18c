"""Weights that stay in host memory: a streamed table and head, and decoder layers copied ahead.

A copy from pinned memory runs beside the arithmetic. Everything here works on the CPU too, where
"host" and "device" are the same memory and a copy is a copy: the numerics are tested there.

Shapes: B samples, T positions, n supervised positions, H hidden channels, V vocabulary rows,
K trained rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from profiles.sizes import MIB
from trainer.model.layers.frozen import FrozenLinear
from trainer.model.layers.host_memory import HostMemory, pinned

CHUNK_BYTES = 32 * MIB
ALIGNMENT = 256  # bytes; what CUDA's own allocations have


def hidden_from_autograd(target: Tensor) -> Any:
    """A context that hides changes of `target` from autograd.

    A compiled layer keeps its weights for the backward pass by reference, and autograd's version
    counter would report them as changed. But by then `Gate` has copied the layer's bytes into the
    buffer again.
    """
    return torch.autograd._unsafe_preserve_version_counter(target)


class _Copier:
    """Copies host tensors into device buffers on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, target: Tensor, source: Tensor) -> torch.cuda.Event | None:
        """Queue a copy behind all work queued so far; the event marks its end."""
        if self.stream is None:
            with hidden_from_autograd(target):
                target.copy_(source)
            return None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), hidden_from_autograd(target):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        torch.cuda.current_stream().wait_event(event)


def stream_rows(table: Tensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows [c, H] on `device`) over a host table [V, H], copied one chunk ahead.

    Two buffers on the card take turns: a chunk is good only until the next one is asked for.
    """
    rows = max(1, CHUNK_BYTES // (table.shape[1] * table.element_size()))
    copier = _Copier(device)
    buffers = [torch.empty(rows, table.shape[1], dtype=table.dtype, device=device) for _ in "ab"]
    starts = list(range(0, table.shape[0], rows))
    events: list[torch.cuda.Event | None] = [None, None]

    def fetch(number: int) -> None:
        source = table[starts[number] : starts[number] + rows]
        events[number % 2] = copier.start(buffers[number % 2][: len(source)], source)

    fetch(0)
    for number, start in enumerate(starts):
        _wait(events[number % 2])
        if number + 1 < len(starts):
            fetch(number + 1)
        yield start, buffers[number % 2][: min(rows, table.shape[0] - start)]


@torch.library.custom_op("lisa_preflight::host_lookup", mutates_args=())
def host_lookup(input_ids: Tensor, table: Tensor) -> Tensor:
    """Rows [B, T, H] of a host table [V, H] on the ids' device, each different row copied once."""
    # A picture repeats one token id many times, so a batch has few different rows.
    rows, place = input_ids.cpu().unique(return_inverse=True)
    found, device = table[rows], input_ids.device
    if device.type == "cuda":
        found, place = found.pin_memory(), place.pin_memory()
    return found.to(device, non_blocking=True)[place.to(device, non_blocking=True)]


@host_lookup.register_fake
def _(input_ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(*input_ids.shape, table.shape[1], device=input_ids.device)


class HostEmbedding(nn.Module):
    """A frozen embedding table [V, H] in host memory; a batch's rows are copied to the card."""

    def __init__(self, table: Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight = pinned(table, device)  # no parameter: `Module.to` must leave it where it is
        self.device = device

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, H] on their device."""
        found: Tensor = host_lookup(input_ids, self.weight)
        return found


class HostHead(nn.Module):
    """A frozen head [V, H] in host memory, streamed in chunks; trained rows lie over it."""

    ids: Tensor

    def __init__(self, table: Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight = pinned(table, device)
        self.device = device
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long), persistent=False)
        self.rows: nn.Parameter | None = None

    def train_rows(self, ids: Sequence[int]) -> None:
        """Make the rows `ids` [K] parameters."""
        self.ids = torch.tensor(list(ids), device=self.device)
        self.rows = nn.Parameter(self.weight[list(ids)].float().to(self.device))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] hidden states -> [..., V] logits."""
        parts = [hidden @ chunk.t() for _, chunk in stream_rows(self.weight, self.device)]
        logits = torch.cat(parts, -1)
        if self.rows is None:
            return logits
        return logits.index_copy(-1, self.ids, hidden @ self.rows.to(hidden.dtype).t())

    def cross_entropy_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy in nats of hidden states [n, H] against labels [n] of token ids."""
        rows = hidden.new_zeros(0, hidden.shape[1]) if self.rows is None else self.rows
        loss: Tensor = _OnePassLoss.apply(hidden, rows, labels, self.ids, self.weight)
        return loss


class _OnePassLoss(torch.autograd.Function):
    """Cross-entropy and its gradients in ONE pass over a streamed head.

    The softmax's normaliser is not known before the last chunk, so the sums are kept relative to
    the largest logit so far and rescaled when it grows, as in Milakov & Gimelshein 2018
    (arXiv:1805.02867). With logits l, rows w and probabilities p: loss = Σ log Σ_v exp(l_v) − l_y,
    d loss / d hidden = Σ_v p_v w_v − w_y.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, rows: Tensor, labels: Tensor, ids: Tensor, table: Tensor
    ) -> Tensor:
        n, device = len(hidden), hidden.device
        largest = torch.full((n, 1), -torch.inf, device=device)
        total = torch.zeros(n, 1, device=device)
        mean_row = torch.zeros(n, hidden.shape[1], device=device)
        label_row, label_logit = torch.zeros_like(mean_row), torch.zeros(n, device=device)
        own = rows.to(hidden.dtype)

        def add(chunk: Tensor, skip: Tensor, place: Tensor, here: Tensor) -> Tensor:
            """Take in a chunk [c, H]; `place` [n] is the label's row in it, where `here`."""
            nonlocal largest, total, mean_row, label_row, label_logit
            logits = (hidden @ chunk.t()).float().masked_fill_(skip, -torch.inf)
            new = torch.maximum(largest, logits.amax(1, keepdim=True))
            shrink = (largest - new).exp()
            weights = (logits - new).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            mean_row = mean_row * shrink + (weights.to(chunk.dtype) @ chunk).float()
            largest = new
            place = place.clamp(0, len(chunk) - 1)
            label_row = torch.where(here[:, None], chunk[place].float(), label_row)
            found = logits.gather(1, place[:, None])[:, 0]
            label_logit = torch.where(here, found, label_logit)
            return weights

        own_match = labels[:, None] == ids
        in_own = own_match.any(1)
        for start, chunk in stream_rows(table, device):
            place = labels - start
            here = (place >= 0) & (place < len(chunk)) & ~in_own
            add(chunk, _inside(ids, start, len(chunk)), place, here)
        gradient_rows = torch.zeros_like(rows)
        if len(ids):
            nothing = torch.zeros(len(ids), dtype=torch.bool, device=device)
            weights = add(own, nothing, own_match.int().argmax(1), in_own)
            off = weights / total - own_match.float()
            gradient_rows = off.t() @ hidden.float()
        ctx.save_for_backward(
            (mean_row / total - label_row).to(hidden.dtype), gradient_rows.to(rows.dtype)
        )
        return (largest[:, 0] + total[:, 0].log() - label_logit).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_hidden, for_rows = ctx.saved_tensors
        scale = gradient.to(for_hidden.dtype)
        return for_hidden * scale, for_rows * gradient.to(for_rows.dtype), None, None, None


def _inside(ids: Tensor, start: int, count: int) -> Tensor:
    """[count] bool: which rows of a chunk are among `ids`; the host never waits for the values."""
    rows = torch.arange(start, start + count, device=ids.device)
    return (rows[:, None] == ids).any(1)


class HostLayers:
    """Frozen weights of decoder layers in pinned host memory; two buffers on the card take turns.

    A layer's stored tensors are always views into the same buffer: nothing is allocated and no
    address changes. `fetch` waits until they hold the layer's values and starts to copy the next
    layer.
    """

    def __init__(self, device: torch.device, memory: HostMemory) -> None:
        self.device, self.memory = device, memory
        self.host: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.holds: list[int | None] = [None, None]
        self.events: list[torch.cuda.Event | None] = [None, None]
        self.copier = _Copier(device)
        self.copied: set[int] = set()  # layers that have been on the card

    def adopt(self, layer: nn.Module) -> int:
        """Move a layer's frozen linears to host memory; returns its number here."""
        number = len(self.host)
        tensors = list(stored_tensors(layer))
        places, size = [], 0
        for owner, name in tensors:
            places.append(size)
            value = getattr(owner, name)
            size += -(-value.numel() * value.element_size() // ALIGNMENT) * ALIGNMENT
        if len(self.buffers) < 2:
            self.buffers.append(torch.empty(size, dtype=torch.uint8, device=self.device))
        block = self.memory.block(size, self.device)
        buffer = self.buffers[number % 2]
        for (owner, name), start in zip(tensors, places, strict=True):
            value = getattr(owner, name)
            end = start + value.numel() * value.element_size()
            if self.memory.fills:
                block[start:end].view(value.dtype).view(value.shape).copy_(value)
            _replace(owner, name, buffer[start:end].view(value.dtype).view(value.shape))
        self.host.append(pinned(block, self.device))
        return number

    def fetch(self, number: int, step: int) -> None:
        """Have layer `number` on the card, and start to copy the next one, `step` (+1 or −1) on."""
        self._begin(number)
        _wait(self.events[number % 2])
        if 0 <= number + step < len(self.host):
            self._begin(number + step)

    def _begin(self, number: int) -> None:
        turn = number % 2
        if self.holds[turn] != number:
            self.events[turn] = self.copier.start(self.buffers[turn], self.host[number])
            self.holds[turn] = number
            self.copied.add(number)


class Gate(torch.autograd.Function):
    """The identity behind a host-resident layer: its backward pass fetches the layer again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layers: HostLayers, number: int) -> Tensor:
        ctx.layers, ctx.number = layers, number
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.layers.fetch(ctx.number, -1)
        return gradient, None, None


def stored_tensors(layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(owner, name) of every large tensor of a decoder layer; adapters come later."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear):
            yield from ((module, name) for name in module.stored)
        elif isinstance(module, nn.Linear):
            yield module, "weight"


def host_tensors(model: nn.Module) -> list[Tensor]:
    """Everything of a model that stays in host memory."""
    tables = [m.weight for m in model.modules() if isinstance(m, HostEmbedding | HostHead)]
    found = {id(table): table for table in tables}  # a tied head has the embedding's
    layers = getattr(model, "host_layers", None)
    return [*found.values(), *([] if layers is None else layers.host)]


def _replace(owner: nn.Module, name: str, value: Tensor) -> None:
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[name] = value
