"""Qwen3-VL and SAM 2 behind the trainer's interface of a family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from profiles.families import VISION
from profiles.families.qwen3_sam2 import Profile
from profiles.settings import Encoder
from trainer.frame import Frame
from trainer.model.families import SHAPELESS, Family, decoder_table, differing
from trainer.model.families.qwen3_sam2 import names, pictures
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
    givers = (
        ("qwen.", "Qwen/Qwen3-VL-…-Instruct or a released Sa2VA checkpoint"),
        ("sam.", "facebook/sam2.1-hiera-large or a released Sa2VA checkpoint"),
        ("mask_encoder.", "facebook/sam2.1-hiera-large or a released Sa2VA checkpoint"),
        (fresh, "a released Sa2VA checkpoint"),
    )

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
        return {"pixels": torch.from_numpy(Frame.of(profile).pixels(image))[None]}

    def target_names(self, found: Iterable[str]) -> Mapping[str, str | None]:
        """As Qwen3-VL, SAM 2 and Sa2VA were published (`names`)."""
        return names.target_names(found)

    def other_settings(self, config: Mapping[str, Any], profile: Profile) -> list[str]:
        """Settings of Qwen that differ between the checkpoint's training and this model."""
        theirs, decoder = decoder_table(config), qwen_config(profile, 0, 0).text_config
        rope = theirs.get("rope_parameters") or theirs.get("rope_scaling")
        if isinstance(rope, Mapping):
            theirs = {**theirs, **rope}
        ours = {name: getattr(decoder, name) for name in SHAPELESS}
        ours |= {name: decoder.rope_parameters[name] for name in ("rope_theta", "mrope_section")}
        return differing(theirs, ours)

    def likely_model(self, needed: Iterable[str], offered: Iterable[str]) -> str:
        """Sa2VA's checkpoints have a head of their own, Qwen's of 2B and 4B have none."""
        head = QwenSam2.tables()[1]
        if head in set(offered) - set(needed):
            return "a released Sa2VA has a head of its own; try sa2va-{model}"
        if head in set(needed) - set(offered):
            return "its head is its embedding table, as in qwen3-vl-2b and qwen3-vl-4b"
        return ""


FAMILY = Qwen3Sam2()
