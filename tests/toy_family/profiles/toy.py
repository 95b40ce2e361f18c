"""Sizes of the toy family."""

from __future__ import annotations

from profiles.families import (
    MASK,
    VISION,
    DecoderShape,
    EncoderFacts,
    ModelProfile,
    Prompting,
)

MOST = 4  # patches a side
PATCH = 8  # pixels a side


class Profile(ModelProfile):
    """One size of the toy."""

    tokens_vary = True
    reserved = ("<end>", "<picture>")

    channels: int
    mask_channels: int

    @property
    def encoders(self):
        """Both encoders make several tensors of a picture; one needs to know its grid."""
        c, e = self.channels, self.mask_channels
        return {
            VISION: EncoderFacts(
                name="eye",
                sizes=f"{c}",
                pixels={"patches": (MOST**2, 3 * PATCH**2)},
                features={"features": (MOST**2, c), "deep": (MOST**2, c)},
                flops=1e6,
                caching_bytes=3 << 20,
                numbers={"grid": (MOST, MOST)},
            ),
            MASK: EncoderFacts(
                name="mask-eye",
                sizes=f"{e}",
                pixels={"pixels": (1, 3, 64, 64)},
                features={"coarse": (1, e, 8, 8), "fine": (1, e // 4, 16, 16)},
                flops=1e6,
                caching_bytes=2 << 20,
            ),
        }

    @property
    def frame_pixels(self) -> int:
        return 64

    @property
    def most_image_tokens(self) -> int:
        return MOST**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches of a picture, down and across."""
        longest = max(height, width)
        return max(1, MOST * height // longest), max(1, MOST * width // longest)

    def image_tokens(self, height: int, width: int) -> int:
        down, across = self.grid(height, width)
        return down * across


TOY = Profile(
    name="toy",
    title="a toy",
    family="toy",
    vocabulary_rows=800,
    decoder=DecoderShape(
        hidden=64, layers=5, heads=4, intermediate=96, key_heads=2, head_channels=24, tied_head=True
    ),
    prompting=Prompting(at_seg=True, before_norm=True, stretched=True, masks=3),
    sources=("nowhere",),
    channels=24,
    mask_channels=32,
)
