"""The mask decoder's padded square frame, and the place of a picture in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def inner_size(height: int, width: int, frame: int) -> tuple[int, int]:
    """Height and width of the picture inside SAM's padded frame: longest side to `frame`."""
    scale = frame / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def frame_mask(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[H, W] of {0, 1, 255} -> [side, side] in SAM's frame; the padding is 255, ignored."""
    height, width = inner_size(mask.shape[0], mask.shape[1], side)
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    framed = np.full((side, side), 255, np.uint8)
    framed[:height, :width] = np.asarray(resized)
    return framed
