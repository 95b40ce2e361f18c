"""Qwen3-VL and SAM 2 in small, for tests on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from profiles.families import DecoderShape, Prompting
from profiles.families.qwen3_sam2 import Profile, Rope, Sam2Shape, VisionShape
from profiles.models import models
from trainer.model.weights import RandomWeights

AS_IN_LISA = Prompting()
AS_IN_SA2VA = Prompting(at_seg=True, stretched=True, masks=3, padding_points=2)


class Uneven(RandomWeights):
    """Every tensor has values of its own: norms and biases too, and large enough to tell."""

    def get(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, name)) + 131 * len(name))
        drawn = torch.randn(shape, generator=generator, dtype=dtype) * 0.12
        return drawn + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)


def small(name: str = "small-qwen", **changes: object) -> Profile:
    """A small size of the family, not yet known by its name."""
    decoder = DecoderShape(
        hidden=48, layers=5, heads=4, intermediate=80, key_heads=2, head_channels=16,
        tied_head=True, norm_eps=1e-6,
    )  # fmt: skip
    settings: dict[str, object] = {
        "name": name,
        "title": "Qwen3-VL and SAM 2 in small",
        "family": "qwen3_sam2",
        "vocabulary_rows": 900,
        "decoder": decoder,
        "rope": Rope(theta=5e6, sections=(4, 2, 2)),
        "vision": VisionShape(
            hidden=32, layers=5, heads=2, intermediate=48, taps=(0, 2, 3), table_side=6
        ),
        "sam": Sam2Shape(
            image_pixels=128, blocks=(1, 2, 3, 1), hidden=(16, 32, 64, 128), heads=(1, 2, 4, 8),
            windows=(8, 4, 8, 4), global_blocks=(4,), background=(7, 7), channels=32,
            decoder_intermediate=64,
        ),
        "prompting": AS_IN_SA2VA,
        "min_pixels": 6 * 32**2,
        "max_pixels": 24 * 32**2,
        "sources": ("nowhere",),
    }  # fmt: skip
    return Profile.model_validate(settings | changes)


def register(profile: Profile) -> Profile:
    """Have the house know a size."""
    models()[profile.name] = profile
    return profile


def forget(name: str = "small-qwen") -> None:
    """Undo `register`: other tests list the sizes that there are."""
    models().pop(name, None)
