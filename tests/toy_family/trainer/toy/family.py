"""The toy family as the trainer asks for it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tokenizers.normalizers import Lowercase

from profiles.families import VISION
from profiles.families.toy import PATCH, Profile
from trainer.model.families import Family
from trainer.model.families.toy.model import Toy
from trainer.model.tokenizer import ConversationTokenizer
from trainer.prompts import IMAGE_PREFIX, SEG_TOKEN

END = Profile.reserved[0]


class ToyTokenizer(ConversationTokenizer):
    special = {"eos_token": END, "pad_token": "<pad>"}  # noqa: RUF012
    new_tokens = (SEG_TOKEN,)
    picture = "<picture>"
    picture_token = "<picture>"

    @classmethod
    def as_trained(cls, tokenizer):
        tokenizer.normalizer = Lowercase()

    @staticmethod
    def segments(turns):
        pieces = []
        for number, turn in enumerate(turns):
            asked = turn.question if number == 0 else turn.question.removeprefix(IMAGE_PREFIX)
            pieces.append((f"Q {asked} A", False))
            if turn.answer is not None:
                pieces.append((f" {turn.answer}{END}", True))
        return pieces


class ToyFamily(Family):
    model = Toy
    tokenizer = ToyTokenizer
    fresh = "to_prompts."

    def skeleton(self, profile, tokenizer):
        return Toy(profile, tokenizer.image_id, tokenizer.seg_id)

    def pixels(self, image, encoder, profile):
        down, across = profile.grid(*image.shape[:2]) if encoder == VISION else (8, 8)
        small = Image.fromarray(image).resize((across * PATCH, down * PATCH))
        values = torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1).permute(2, 0, 1)
        if encoder != VISION:
            return {"pixels": values[None].contiguous()}
        patches = values.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        patches = patches.permute(1, 2, 0, 3, 4).reshape(down * across, -1)
        return {"patches": patches, "grid": torch.tensor([[down, across]])}


FAMILY = ToyFamily()
