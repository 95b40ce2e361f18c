"""A picture as Qwen3-VL and SAM 2 want it. numpy and PIL only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.families.qwen3_sam2 import FRAMES, Profile, cut_to

# Part of the feature cache's key: raise it when pixels come out differently.
VERSION = 1

QWEN_MEAN = QWEN_STD = np.float32(127.5)
SAM_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
SAM_STD = np.array([58.395, 57.12, 57.375], np.float32)


def patches(
    image: NDArray[np.uint8], profile: Profile
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """[H, W, 3] -> patches [4 N, values], token by token, and the grid of tokens."""
    image = _middle(image)
    down, across = profile.grid(*image.shape[:2])
    side, merged = profile.vision.patch_pixels, profile.vision.merged
    size = across * merged * side, down * merged * side
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    values = (np.asarray(resized, np.float32) - QWEN_MEAN) / QWEN_STD
    cells = values.reshape(down, merged, side, across, merged, side, 3)
    cells = cells.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    shown = np.broadcast_to(cells, (*cells.shape[:5], FRAMES, side, side))
    return shown.reshape(down * across * merged**2, -1), (down, across)


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What of a picture [H, W, 3] is looked at."""
    height, width = cut_to(*image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def sam_pixels(image: NDArray[np.uint8], size: tuple[int, int], frame: int) -> NDArray[np.float32]:
    """[H, W, 3] -> [3, frame, frame]: resized to `size` (height, width), zero beside it."""
    height, width = size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    framed = np.zeros((frame, frame, 3), np.float32)
    framed[:height, :width] = (np.asarray(resized, np.float32) - SAM_MEAN) / SAM_STD
    return framed.transpose(2, 0, 1)
