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


def attention_mask(blocks: Tensor, dtype: torch.dtype, start: int = 0) -> Tensor:
    """What is added to the scores [B, 1, T - start, T] of rows whose questions share their prefix.

    `blocks` [B, T] is 0 in the prefix and n in the n-th question: a position sees the prefix and
    its own question, up to itself.
    """
    own = blocks[:, start:]
    return added_to_scores(seen_by(own, blocks).tril(start)[:, None], dtype)


def seen_by(own: Tensor, blocks: Tensor) -> Tensor:
    """Whether positions of questions `own` [B, n] see those of `blocks` [B, S]: [B, n, S]."""
    seen = blocks[:, None, :]
    return (seen == 0) | (seen == own[:, :, None])


def added_to_scores(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a position sees another, else minus infinity."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)


SLOTS = 64  # keys and values have room for a multiple: attention's kernels want 8
MOST_LENGTHS = 256  # beyond it dynamo would continue without compiling, and slowly


class KeyValues:
    """Keys and values of a row and of what follows, layer by layer, in blocks taken once.

    The row that is read fills slots from the front. Later tokens go into `slots` and attend to
    whole blocks, so that every step has the same shapes and addresses; a mask hides what they must
    not see. Unused slots are zero, since attention multiplies them with a weight of 0.
    """

    def __init__(self, most: int) -> None:
        self.most = -(-most // SLOTS) * SLOTS
        self.blocks: dict[int, Tensor] = {}  # [2, B, heads, slots, channels]
        self.length = 0  # slots filled
        self.slots: Tensor | None = None  # [T] of later tokens

    def run_layer(
        self, layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None
    ) -> Tensor:
        """One decoder layer on [B, T, H], which sees all that came before.

        It needs a mask, except where the row is read from its start.
        """
        output: Tensor = layer(
            hidden, position_embeddings=rope, attention_mask=mask, past_key_values=self
        )
        return output

    def forget(self, length: int) -> None:
        """Keep the first `length` slots alone."""
        self.length = length
        for block in self.blocks.values():
            block[..., length:, :].zero_()

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Take in [B, heads, T, channels] of a layer; the keys and values that it is to see."""
        if layer not in self.blocks:
            shape = 2, *keys.shape[:2], self.most, keys.shape[3]
            self.blocks[layer] = keys.new_zeros(shape)
        kept = self.blocks[layer]
        if self.slots is not None:
            for block, new in zip(kept, (keys, values), strict=True):
                block.index_copy_(2, self.slots, new)
            return kept[0], kept[1]
        end = self.length + keys.shape[2]
        kept[0, :, :, self.length : end], kept[1, :, :, self.length : end] = keys, values
        return kept[0, :, :, :end], kept[1, :, :, :end]


def as_it_is(run: RunLayer) -> RunLayer:
    return run


def compiled_graphs() -> int:
    """How many graphs torch's compiler has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compiled_layer(run: RunLayer) -> RunLayer:
    """`run`, compiled anew for each length of a micro-batch (`trainer.data.samples.length_step`).

    One graph for all lengths will not do: with a symbolic length and recomputation inside, torch
    2.11's partitioner fails ("Node … was invalid, but is output").
    """
    torch._dynamo.config.recompile_limit = MOST_LENGTHS
    compiled: RunLayer = torch.compile(run, dynamic=False)
    return compiled
