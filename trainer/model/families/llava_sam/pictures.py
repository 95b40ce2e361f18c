"""A picture as CLIP and SAM want it. numpy and PIL only; shapes in pixels, channels first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.families import VISION
from profiles.families.llava_sam import Profile
from profiles.settings import Encoder
from trainer.frame import inner_size

# Part of the feature cache's key: raise it when pixels come out differently.
VERSION = 1

# Of a longer picture CLIP looks at the middle: a line of pixels would be scaled up to gigabytes.
LONGEST = 64  # times the shortest side

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SAM_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
SAM_STD = np.array([58.395, 57.12, 57.375], np.float32)


def clip_pixels(image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """[H, W, 3] -> [3, side, side]: shortest side to `side`, centre crop, CLIP's mean and std."""
    image = _middle(image, LONGEST * min(image.shape[:2]))
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    crop = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255.0
    return ((crop - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


def _middle(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """[H, W, 3] with what is over `longest` pixels cut off on both sides."""
    top, left = (max(0, length - longest) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top:, left:][:longest, :longest])


def sam_pixels(image: NDArray[np.uint8], frame: int) -> NDArray[np.float32]:
    """[H, W, 3] -> [3, frame, frame]: longest side to `frame`, normalised, padded right, bottom.

    The padding is zero after normalising, as SAM's own `preprocess` has it.
    """
    height, width = inner_size(image.shape[0], image.shape[1], frame)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    framed = np.zeros((frame, frame, 3), np.float32)
    framed[:height, :width] = (np.asarray(resized, np.float32) - SAM_MEAN) / SAM_STD
    return framed.transpose(2, 0, 1)


def pixels(image: NDArray[np.uint8], encoder: Encoder, profile: Profile) -> NDArray[np.float32]:
    """The input of CLIP or SAM for one picture [H, W, 3]."""
    if encoder == VISION:
        return clip_pixels(image, profile.clip.image_pixels)
    return sam_pixels(image, profile.sam.image_pixels)
