"""Trained rows: the few rows of embedding and head that belong to new tokens.

LISA adds three tokens. Upstream trains both whole matrices for them, 262 M parameters at 7B; here
only the rows of those tokens are parameters, laid over the frozen matrix in the forward pass.

Shapes: B samples, T positions, H hidden channels, V vocabulary rows, K trained rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.layers.host import HostEmbedding


class TokenRowEmbedding(nn.Module):
    """A frozen embedding [V, H] in which the rows `ids` [K] are looked up in `rows` [K, H]."""

    ids: Tensor

    def __init__(self, base: nn.Embedding | HostEmbedding, ids: list[int]) -> None:
        super().__init__()
        self.base = base
        # Rows are trained on the card even if their table stays in host memory.
        device = base.device if isinstance(base, HostEmbedding) else base.weight.device
        self.register_buffer("ids", torch.tensor(ids, device=device), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[ids].float().to(device, copy=True))

    @property
    def weight(self) -> Tensor:
        """The frozen matrix; transformers asks its dtype and device."""
        return self.base.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, H] in the base's dtype."""
        frozen = self.base(input_ids)
        match = input_ids[..., None] == self.ids
        # A product, not a lookup: the backward pass of a lookup adds up the gradients of thousands
        # of equal indices one after the other (4 ms of a 400 ms step).
        trained = match.to(frozen.dtype) @ self.rows.to(frozen.dtype)
        return torch.where(match.any(-1, keepdim=True), trained, frozen)


class TokenRowHead(nn.Module):
    """A frozen head [V, H] in which the logits of `ids` [K] come from `rows` [K, H]."""

    ids: Tensor

    def __init__(self, base: nn.Linear, ids: list[int]) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids, device=base.weight.device), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[ids].float().clone())

    @property
    def weight(self) -> Tensor:
        """The frozen matrix; transformers asks its dtype and device."""
        return self.base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] hidden states -> [..., V] logits."""
        logits = self.base(hidden)
        trained = nn.functional.linear(hidden, self.rows.to(hidden.dtype)).to(logits.dtype)
        return logits.index_copy(-1, self.ids, trained)
