"""A picture as CLIP and SAM want it. numpy and PIL only; shapes in pixels, channels first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiles.families import VISION
from profiles.families.llava_sam import Profile
from profiles.settings import Encoder
from trainer.frame import Frame, middle, normalised

# Part of the feature cache's key: raise it when pixels come out differently.
VERSION = 1

# Of a longer picture CLIP looks at the middle: a line of pixels would be scaled up to gigabytes.
LONGEST = 64  # times the shortest side

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_pixels(image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """[H, W, 3] -> [3, side, side]: shortest side to `side`, centre crop, CLIP's mean and std."""
    image = middle(image, LONGEST * min(image.shape[:2]))
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    crop = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255.0
    return normalised(crop, CLIP_MEAN, CLIP_STD).transpose(2, 0, 1)


def pixels(image: NDArray[np.uint8], encoder: Encoder, profile: Profile) -> NDArray[np.float32]:
    """The input of CLIP or SAM for one picture [H, W, 3]."""
    if encoder == VISION:
        return clip_pixels(image, profile.clip.image_pixels)
    return Frame.of(profile).pixels(image)
