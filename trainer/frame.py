"""The mask decoder's square frame: where a picture lies in it, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from profiles.families import ModelProfile
from trainer.ignored import IGNORE_PIXEL

# ImageNet's, of colours from 0 to 255, as SAM and SAM 2 take them.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class Frame:
    """A square of `side` pixels into which pictures are stretched, or shrunk and padded."""

    side: int
    stretched: bool = False

    @classmethod
    def of(cls, profile: ModelProfile) -> Frame:
        """The frame of a model's mask decoder."""
        return cls(profile.frame_pixels, profile.prompting.stretched)

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture inside the frame; padded, its longest side is `side`."""
        if self.stretched:
            return self.side, self.side
        return inner_size(height, width, self.side)

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A picture [H, W, 3] in the frame [3, side, side], normalised; zero beside it."""
        height, width = self.inner(*image.shape[:2])
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        framed = np.zeros((self.side, self.side, 3), np.float32)
        framed[:height, :width] = normalised(np.asarray(resized), MEAN, STD)
        return framed.transpose(2, 0, 1)

    def mask(self, mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
        """[H, W] of {0, 1, 255} -> [side, side], the frame at that size; padding is ignored."""
        height, width = Frame(side, self.stretched).inner(*mask.shape)
        resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        framed = np.full((side, side), IGNORE_PIXEL, np.uint8)
        framed[:height, :width] = np.asarray(resized)
        return framed

    def to_original(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Low-resolution logits [M, L, L] -> [M, height, width] at the picture's own size.

        The way back through the frame: up to its size, crop the padding, resize (Kirillov et al.
        2023, arXiv:2304.02643, `postprocess_masks`).
        """
        inner = self.inner(height, width)
        resize = partial(functional.interpolate, mode="bilinear", align_corners=False)
        framed = resize(logits[:, None].float(), size=(self.side, self.side))
        return resize(framed[..., : inner[0], : inner[1]], size=(height, width))[:, 0]


def normalised(
    image: NDArray[np.uint8 | np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(image [H, W, 3] - mean) / std, row by row: numpy is slow if the last axis has 3 values."""
    rows, width = image.reshape(len(image), -1), image.shape[1]
    values = np.subtract(rows, np.tile(mean, width), dtype=np.float32)
    values /= np.tile(std, width)
    return values.reshape(image.shape)


def inner_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of a picture whose longest side is made `side`."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def middle(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """[H, W, 3] cut to at most `longest` pixels a side, equally at both ends."""
    top, left = (max(0, length - longest) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top:, left:][:longest, :longest])
