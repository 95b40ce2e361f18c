"""A picture as Qwen3-VL wants it. numpy and PIL only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.families.qwen3_sam2 import FRAMES, LONGEST, Profile
from trainer.frame import middle

# Part of the feature cache's key: raise it when pixels come out differently.
VERSION = 1

QWEN_MEAN = QWEN_STD = np.float32(127.5)


def patches(
    image: NDArray[np.uint8], profile: Profile
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """[H, W, 3] -> patches [4 N, values], token by token, and the grid of tokens."""
    image = middle(image, LONGEST * min(image.shape[:2]))
    down, across = profile.grid(*image.shape[:2])
    side, merged = profile.vision.patch_pixels, profile.vision.merged
    size = across * merged * side, down * merged * side
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    values = (np.asarray(resized, np.float32) - QWEN_MEAN) / QWEN_STD
    cells = values.reshape(down, merged, side, across, merged, side, 3)
    cells = cells.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    shown = np.broadcast_to(cells, (*cells.shape[:5], FRAMES, side, side))
    return shown.reshape(down * across * merged**2, -1), (down, across)
