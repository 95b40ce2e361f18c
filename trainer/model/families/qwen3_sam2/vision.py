"""The frozen encoders: Qwen3-VL's vision tower, one picture at a time, and SAM 2's three levels.

The tower's own forward pass reads lengths out of tensors in every block; this one knows the
picture's grid beforehand, so that it can be rehearsed without a GPU. transformers' modules compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Sam2Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)


def see(tower: Qwen3VLVisionModel, patches: Tensor, down: int, across: int) -> dict[str, Tensor]:
    """Features [N, H] of one picture of `down` × `across` tokens, and `deep` [N, taps, H]: what the
    first decoder layers are given as well.

    `patches` [4 N, values] are in the order of their tokens.
    """
    rows, columns = _places(down, across, tower.spatial_merge_size, patches.device)
    states = tower.patch_embed(patches)
    states = states + _learned(tower, rows, columns).to(states.dtype)
    rope = tower.rotary_pos_emb(states, torch.stack([rows, columns], 1))
    deep: list[Tensor] = []
    for number, block in enumerate(tower.blocks):
        states = states + _attended(block.attn, block.norm1(states), rope)
        states = states + block.mlp(block.norm2(states))
        if number in tower.deepstack_visual_indexes:
            deep.append(tower.deepstack_merger_list[len(deep)](states))
    return {"deep": torch.stack(deep, 1), "features": tower.merger(states)}


def _places(down: int, across: int, merged: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, in the order of tokens, and inside a token row by row."""
    grid = torch.arange(down * merged * across * merged, device=device)
    grid = grid.view(down, merged, across, merged).transpose(1, 2).flatten()
    return grid // (across * merged), grid % (across * merged)


def _learned(tower: Qwen3VLVisionModel, rows: Tensor, columns: Tensor) -> Tensor:
    """The learned positions [P, C], between the four nearest of a square table whose corners are
    the picture's."""
    side = tower.num_grid_per_side
    sums: Tensor | float = 0.0
    for row, high in _taps(rows, side):
        for column, wide in _taps(columns, side):
            sums = sums + tower.pos_embed(row * side + column) * (high * wide)[:, None]
    assert isinstance(sums, Tensor)
    return sums


def _taps(places: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two nearest places in a table of `side`, each with its share."""
    at = places * ((side - 1) / places.max().clamp(min=1))
    low = at.floor()
    share = at - low
    return [(low.long(), 1 - share), ((low + 1).clamp(max=side - 1).long(), share)]


def _attended(attention: Any, states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Every patch looks at every other [P, C]."""
    shape = len(states), 3, attention.num_heads, -1
    queries, keys, values = attention.qkv(states).reshape(shape).unbind(1)
    queries, keys = apply_rotary_pos_emb_vision(queries, keys, *rope)
    q, k, v = (heads.transpose(0, 1)[None] for heads in (queries, keys, values))
    seen = functional.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    output: Tensor = attention.proj(seen[0].transpose(0, 1).flatten(1))
    return output


class _NoPositions(nn.Module):
    """A stand-in for SAM 2's positions of the levels, which only its video model reads."""

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Nothing."""
        return torch.empty(0, device=device, dtype=dtype)


class MaskEncoder(nn.Module):
    """SAM 2's image encoder, and the frozen layers between it and the mask decoder.

    They are taken out of the model: with cached features it needs none of them.
    """

    def __init__(self, sam: Sam2Model) -> None:
        super().__init__()
        self.vision_encoder = sam.vision_encoder
        self.vision_encoder.neck.position_encoding = _NoPositions()
        self.conv_s0, self.conv_s1 = sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1
        self.no_memory_embedding = sam.no_memory_embedding
        sam.vision_encoder = sam.no_memory_embedding = None
        sam.mask_decoder.conv_s0 = sam.mask_decoder.conv_s1 = None
        # A [SEG] is the only prompt: none of points or masks.
        sam.prompt_encoder.point_embed = sam.prompt_encoder.mask_embed = None

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pictures [B, 3, R, R] -> levels of R/16, R/4 and R/8 a side."""
        fine, middle, coarse = self.vision_encoder(pixels).fpn_hidden_states
        return {
            "coarse": coarse + self.no_memory_embedding.view(1, -1, 1, 1),
            "fine": self.conv_s0(fine),
            "middle": self.conv_s1(middle),
        }
