"""Decoder layers: run, recomputed, compiled, or run with a conversation's keys and values kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Rope = tuple[Tensor, Tensor]  # cosine and sine [B, T, channels of a head]

# One decoder layer on [B, T, H]; the mask [B, 1, T, S] is added to the attention's scores.
RunLayer = Callable[[nn.Module, Tensor, Rope, Tensor | None], Tensor]


def run_layer(layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
    """One decoder layer on [B, T, H].

    Without a mask attention is causal, and its fast kernels apply. Padding is on the right, so no
    real position sees any of it.
    """
    output: Tensor = layer(hidden, position_embeddings=rope, attention_mask=mask)
    return output


def recompute_layer(layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
    """`run_layer`, keeping only its input for the backward pass."""
    output: Tensor = checkpoint(run_layer, layer, hidden, rope, mask, use_reentrant=False)
    return output


def attention_mask(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores [B, 1, T, T] of rows whose questions share their prefix.

    `blocks` [B, T] is 0 in the prefix and n in the n-th question: a position sees the prefix and
    its own question, up to itself.
    """
    seen, own = blocks[:, None, None, :], blocks[:, None, :, None]
    return added_to_scores(((seen == 0) | (seen == own)).tril(), dtype)


def added_to_scores(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a position sees another, else minus infinity."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)


MOST_LENGTHS = 256  # beyond it dynamo would continue without compiling, and slowly


class KeyValues:
    """Keys and values of a conversation, layer by layer, in blocks that are taken once.

    Replaces transformers' cache, which allocates its blocks again for every token.
    """

    def __init__(self, most: int) -> None:
        self.most = most  # positions
        self.blocks: dict[int, Tensor] = {}  # [2, B, heads, length, channels]
        self.filled: dict[int, int] = {}  # positions

    def run_layer(
        self, layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None
    ) -> Tensor:
        """One decoder layer on [B, T, H], which sees all that came before.

        It needs a mask where something came before and T is not 1.
        """
        output: Tensor = layer(
            hidden, position_embeddings=rope, attention_mask=mask, past_key_values=self
        )
        return output

    @property
    def length(self) -> int:
        """Positions so far."""
        return next(iter(self.filled.values()), 0)

    def forget(self, length: int) -> None:
        """Keep the first `length` positions alone."""
        self.filled = dict.fromkeys(self.filled, length)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Take in [B, heads, T, channels] of a layer; its keys and values so far."""
        start = self.filled.get(layer, 0)
        if layer not in self.blocks:
            shape = 2, *keys.shape[:2], self.most, keys.shape[3]
            self.blocks[layer] = keys.new_empty(shape)
        end = self.filled[layer] = start + keys.shape[2]
        block = self.blocks[layer]
        block[0, :, :, start:end], block[1, :, :, start:end] = keys, values
        return block[0, :, :, :end], block[1, :, :, :end]


def as_it_is(run: RunLayer) -> RunLayer:
    return run


def compiled_graphs() -> int:
    """How many graphs torch's compiler has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compiled_layer(run: RunLayer) -> RunLayer:
    """`run`, compiled anew for each length of a micro-batch (`trainer.data.samples.length_step`).

    Not for any length at once: with a symbolic length and the recomputation inside, torch 2.11's
    partitioner fails ("Node … was invalid, but is output").
    """
    torch._dynamo.config.recompile_limit = MOST_LENGTHS
    compiled: RunLayer = torch.compile(run, dynamic=False)
    return compiled
