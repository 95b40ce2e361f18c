"""Decoder layers: run, recomputed, compiled, or run with a conversation's keys and values kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """One decoder layer on [B, T, H].

    No mask: attention is causal and padding is on the right, so no real position sees any of
    it. Without a mask the fast attention kernels apply.
    """
    output: Tensor = layer(hidden, position_embeddings=rope)
    return output


def recompute_layer(layer: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """`run_layer`, keeping only its input for the backward pass."""
    output: Tensor = checkpoint(run_layer, layer, hidden, rope, use_reentrant=False)
    return output


MOST_LENGTHS = 256  # beyond it dynamo would continue without compiling, and slowly


RunLayer = Callable[[nn.Module, Tensor, tuple[Tensor, Tensor]], Tensor]


class KeyValues:
    """Keys and values of one conversation, layer by layer, in blocks that are taken once.

    Replaces transformers' cache, which allocates its blocks again for every token.
    """

    def __init__(self, length: int) -> None:
        self.length = length  # positions, at most
        self.blocks: dict[int, Tensor] = {}  # [2, B, heads, length, channels]
        self.filled: dict[int, int] = {}  # positions

    def run_layer(self, layer: nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """One decoder layer on [B, T, H], which sees all that came before.

        No mask: either nothing came before, and attention is causal, or T is 1.
        """
        output: Tensor = layer(hidden, position_embeddings=rope, past_key_values=self)
        return output

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Take in [B, heads, T, channels] of a layer; its keys and values so far."""
        start = self.filled.get(layer, 0)
        if layer not in self.blocks:
            shape = 2, *keys.shape[:2], self.length, keys.shape[3]
            self.blocks[layer] = keys.new_empty(shape)
        end = self.filled[layer] = start + keys.shape[2]
        block = self.blocks[layer]
        block[0, :, :, start:end], block[1, :, :, start:end] = keys, values
        return block[0, :, :, :end], block[1, :, :, :end]


def as_it_is(run: RunLayer) -> RunLayer:
    return run


def compiled_layer(run: RunLayer) -> RunLayer:
    """`run`, compiled anew for each length of a micro-batch (`trainer.data.samples.length_step`).

    Not for any length at once: with a symbolic length and the recomputation inside, torch 2.11's
    partitioner fails ("Node … was invalid, but is output").
    """
    torch._dynamo.config.recompile_limit = MOST_LENGTHS
    compiled: RunLayer = torch.compile(run, dynamic=False)
    return compiled
