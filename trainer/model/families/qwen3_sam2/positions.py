"""Qwen3-VL's 3-D positions: equal and increasing in text; time, row and column in a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(image: Tensor, grids: Tensor) -> Tensor:
    """[3, B, T] of rows with one picture each.

    `image` [B, T] says where its tokens are, `grids` [B, 2] how many there are down and across.
    Text after a picture continues from the picture's longer side.
    """
    place = torch.arange(image.shape[1], device=image.device).expand_as(image)
    across, behind = grids[:, 1:], later_by(grids)
    inside = image.long().cumsum(1) - 1
    tokens = grids.prod(1, keepdim=True)
    text = torch.where(inside >= tokens - 1, place + behind, place)
    begin = place - inside  # of the picture's tokens: the position of its first
    axes = begin, begin + inside // across, begin + inside % across
    return torch.stack([torch.where(image, axis, text) for axis in axes])


def later_by(grids: Tensor) -> Tensor:
    """Position minus place in the row for text after a picture [B, 1]; never above 0."""
    return grids.amax(1, keepdim=True) - grids.prod(1, keepdim=True)
