"""LLaVA and SAM behind the trainer's interface of a family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from profiles.families.llava_sam import Profile
from profiles.settings import Encoder
from trainer.model.families import SHAPELESS, Family, decoder_table, differing
from trainer.model.families.llava_sam import names, pictures
from trainer.model.families.llava_sam.configs import llava_config, sam_config
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.tokenizer import ConversationTokenizer


class LlavaSam(Family[Profile]):
    """LISA as published: LLaVA-1.5 and SAM."""

    model = Lisa
    tokenizer = LisaTokenizer
    pixels_version = pictures.VERSION
    fresh = "text_hidden_fcs."
    givers = (
        (
            names.CLIP,
            "openai/clip-vit-large-patch14 (224 px, model 7b-v1) or a LLaVA-1.5 checkpoint",
        ),
        (f"{names.PROJECTOR}linear.", "a released LISA checkpoint with a one-layer projector"),
        (names.PROJECTOR, "a LLaVA-1.5 checkpoint, with its two-layer projector"),
        ("llava.", "a LLaVA or a released LISA checkpoint"),
        ("sam.", "facebook/sam-vit-huge or a released LISA checkpoint"),
        (fresh, "a released LISA checkpoint"),
    )

    def skeleton(self, profile: Profile, tokenizer: ConversationTokenizer) -> Lisa:
        """LLaVA and SAM of the profile's sizes."""
        return Lisa(
            profile,
            llava_config(profile, tokenizer.image_id, tokenizer.pad_id),
            sam_config(profile),
            tokenizer.seg_id,
        )

    def pixels(
        self, image: NDArray[np.uint8], encoder: Encoder, profile: Profile
    ) -> dict[str, Tensor]:
        """The input of CLIP or SAM for one picture [H, W, 3]."""
        return {"pixels": torch.from_numpy(pictures.pixels(image, encoder, profile))[None]}

    def target_names(self, found: Iterable[str]) -> Mapping[str, str | None]:
        """As LLaVA, CLIP, SAM and LISA were published (`names`)."""
        return names.target_names(found)

    def other_settings(self, config: Mapping[str, Any], profile: Profile) -> list[str]:
        """Settings of LLaMA that differ between the checkpoint's training and this model."""
        decoder = llava_config(profile, 0, 0).text_config
        ours = {name: getattr(decoder, name) for name in SHAPELESS}
        return differing(decoder_table(config), ours)

    def likely_model(self, needed: Iterable[str], offered: Iterable[str]) -> str:
        """LISA's two versions differ in their projectors."""
        needed, offered = set(needed), set(offered)
        one, two = f"{names.PROJECTOR}linear.weight", f"{names.PROJECTOR}linear_1.weight"
        if one in offered - needed:
            return "its projector has one layer, and {model} needs two; try 7b-v1 or 13b-v1"
        if one in needed and two in offered:
            return "its projector has two layers, and {model} needs one; try 7b or 13b"
        return ""


FAMILY = LlavaSam()
