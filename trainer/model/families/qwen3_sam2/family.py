"""Qwen3-VL and SAM 2 behind the trainer's interface of a family."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from profiles.families import VISION
from profiles.families.qwen3_sam2 import Profile
from profiles.settings import Encoder
from trainer.frame import Frame
from trainer.model.families import Family
from trainer.model.families.qwen3_sam2 import pictures
from trainer.model.families.qwen3_sam2.configs import qwen_config, sam_config
from trainer.model.families.qwen3_sam2.model import QwenSam2
from trainer.model.families.qwen3_sam2.tokenizer import QwenTokenizer
from trainer.model.tokenizer import ConversationTokenizer


class Qwen3Sam2(Family[Profile]):
    """Qwen3-VL and SAM 2, joined as in Sa2VA."""

    model = QwenSam2
    tokenizer = QwenTokenizer
    pixels_version = pictures.VERSION
    fresh = "text_hidden_fcs."

    def skeleton(self, profile: Profile, tokenizer: ConversationTokenizer) -> QwenSam2:
        """Qwen3-VL and SAM 2 of the profile's sizes."""
        qwen = qwen_config(profile, tokenizer.image_id, tokenizer.pad_id)
        return QwenSam2(profile, qwen, sam_config(profile), tokenizer.seg_id)

    def pixels(
        self, image: NDArray[np.uint8], encoder: Encoder, profile: Profile
    ) -> dict[str, Tensor]:
        """The input of Qwen's vision tower or of SAM 2 for one picture [H, W, 3]."""
        if encoder == VISION:
            patches, grid = pictures.patches(image, profile)
            return {"patches": torch.from_numpy(patches), "grid": torch.tensor([grid])}
        frame = Frame.of(profile)
        size = frame.inner(*image.shape[:2])
        return {"pixels": torch.from_numpy(pictures.sam_pixels(image, size, frame.side))[None]}


FAMILY = Qwen3Sam2()
