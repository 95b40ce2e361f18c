"""Qwen3-VL and SAM 2, joined by [SEG] as in Sa2VA (Yuan et al. 2025, arXiv:2501.04001)."""

from __future__ import annotations

from functools import cache, cached_property
from math import ceil, floor, isqrt, sqrt

from profiles.families import MASK, VISION, DecoderShape, EncoderFacts, ModelProfile
from profiles.records import Frozen
from profiles.settings import Encoder, TrainedPart

# Forward products of SAM 2's large encoder for one picture, as torch counts them.
SAM2_FLOPS = 1_824_968_933_376
# The pool while pictures are encoded for the cache (benchmarks/encoders.jsonl): SAM 2's, and what
# the vision tower takes beside its weights, for each patch and fixed.
SAM2_CACHING_BYTES = 916_455_424
PATCH_CACHING_BYTES, TOWER_CACHING_BYTES = 41, 233_000_000  # the former for each channel
MASK_VALUES = 3_786_176  # of what a mask needs in SAM 2's mask decoder
LONGEST = 200  # times the shorter side; Qwen's processor refuses a longer picture
CHANNELS, FRAMES = 3, 2  # of a patch: a picture is shown as two equal frames


class Rope(Frozen):
    """Rotary positions: the base, and a head's pairs of channels for time, height and width."""

    theta: float
    sections: tuple[int, int, int]


class VisionShape(Frozen):
    """Sizes of Qwen3-VL's vision tower."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    taps: tuple[int, ...]  # layers whose output reaches the first decoder layers too (deepstack)
    patch_pixels: int = 16
    merged: int = 2  # patches a side that become one token
    table_side: int = 48  # of the learned positions

    @property
    def token_pixels(self) -> int:
        """Side of what one token sees."""
        return self.patch_pixels * self.merged

    @property
    def patch_values(self) -> int:
        """Values of one patch as the tower takes it."""
        return CHANNELS * FRAMES * self.patch_pixels**2

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linears."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate

    def merger_weights(self, out: int) -> int:
        """Weights of what makes tokens of `out` channels, for the last layer or for a tap."""
        joined = self.hidden * self.merged**2
        return joined * (joined + out)

    def flops(self, tokens: int, out: int) -> float:
        """Forward products for one picture of so many tokens: every patch sees every other."""
        patches = tokens * self.merged**2
        layer = 2 * patches * self.layer_weights + 4 * patches**2 * self.hidden
        merger = 2 * tokens * self.merger_weights(out)
        first = 2 * patches * self.patch_values * self.hidden
        return float(self.layers * layer + (1 + len(self.taps)) * merger + first)

    def caching_bytes(self, tokens: int, out: int) -> int:
        """The allocator's pool while it encodes pictures of so many tokens for the cache."""
        weights = self.layers * self.layer_weights + (1 + len(self.taps)) * self.merger_weights(out)
        patches = tokens * self.merged**2
        return 2 * weights + patches * self.hidden * PATCH_CACHING_BYTES + TOWER_CACHING_BYTES


class Sam2Shape(Frozen):
    """Sizes of SAM 2's image encoder (Hiera) and mask decoder; the frame is square."""

    image_pixels: int
    blocks: tuple[int, int, int, int]  # of each stage, as the next three
    hidden: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: tuple[int, int]  # side of the learned positions, beside those of a window
    channels: int = 256  # of the levels, and of a prompt
    decoder_intermediate: int = 2048

    @property
    def levels(self) -> tuple[int, int, int]:
        """Sides of the three levels that the mask decoder looks at, finest first."""
        return self.image_pixels // 4, self.image_pixels // 8, self.image_pixels // 16


class Profile(ModelProfile):
    """One size: a Qwen3 decoder, Qwen3-VL's vision tower, and SAM 2."""

    tokens_vary = True
    vocabulary = "Qwen3"
    code_bytes = 160 << 20  # transformers' modules: 0.1 to 0.25 GiB were seen
    has_projector = False  # the vision tower's mergers are what is cached
    reserved = (
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>", "<|endoftext|>",
    )  # fmt: skip

    decoder: DecoderShape
    rope: Rope
    vision: VisionShape
    sam: Sam2Shape
    min_pixels: int
    max_pixels: int

    @cached_property
    def encoders(self) -> dict[Encoder, EncoderFacts]:
        """SAM 2's image encoder and Qwen's vision tower."""
        vision, sam, out = self.vision, self.sam, self.decoder.hidden
        tokens = self.most_image_tokens
        fine, middle, coarse = sam.levels
        looks = self.min_pixels, self.max_pixels, out
        return {
            MASK: EncoderFacts(
                name="sam2",
                sizes=sam.model_dump_json(),
                pixels={"pixels": (1, CHANNELS, sam.image_pixels, sam.image_pixels)},
                features={
                    "coarse": (1, sam.channels, coarse, coarse),
                    "fine": (1, sam.channels // 8, fine, fine),
                    "middle": (1, sam.channels // 4, middle, middle),
                },
                flops=SAM2_FLOPS,
                caching_bytes=SAM2_CACHING_BYTES,
                blocks=sum(sam.blocks),
            ),
            VISION: EncoderFacts(
                name="qwen3-vision",
                sizes=f"{vision.model_dump_json()} {looks}",
                pixels={"patches": (tokens * vision.merged**2, vision.patch_values)},
                features={"deep": (tokens, len(vision.taps), out), "features": (tokens, out)},
                flops=vision.flops(tokens, out),
                caching_bytes=vision.caching_bytes(tokens, out),
                blocks=vision.layers,
                numbers={"grid": _squarest(tokens)},
            ),
        }

    @property
    def own_parts(self) -> dict[TrainedPart, int]:
        """The two linears to SAM 2's prompt, and SAM 2's mask decoder."""
        hidden, prompt = self.decoder.hidden, self.sam.channels
        linears = hidden * (hidden + 1) + prompt * (hidden + 1)
        return {"text_hidden_fcs": linears, "mask_decoder": MASK_VALUES}

    @property
    def frame_pixels(self) -> int:
        """Side of SAM 2's frame."""
        return self.sam.image_pixels

    @property
    def most_image_tokens(self) -> int:
        """Tokens of the largest picture."""
        return self.max_pixels // self.vision.token_pixels**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of a picture of that size in pixels, down and across.

        As Qwen's processor has them (`smart_resize`): sides in whole tokens, the area within the
        limits. Where rounding up a long picture passes the upper one, its longer side is cut back.
        """
        side, most = self.vision.token_pixels, self.most_image_tokens
        height, width = cut_to(height, width)
        down, across = round(height / side), round(width / side)
        if down * across * side**2 > self.max_pixels:
            over = sqrt(height * width / self.max_pixels)
            down, across = (max(1, floor(n / over / side)) for n in (height, width))
        elif down * across * side**2 < self.min_pixels:
            under = sqrt(self.min_pixels / (height * width))
            down, across = (ceil(n * under / side) for n in (height, width))
        if down > across:
            return min(down, max(1, most // across)), min(across, most)
        return min(down, most), min(across, max(1, most // down))

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of a picture of that size in pixels."""
        down, across = self.grid(height, width)
        return down * across


def cut_to(height: int, width: int) -> tuple[int, int]:
    """The part of a picture that the model sees: all of it, or the middle of a very long one."""
    return min(height, LONGEST * width), min(width, LONGEST * height)


@cache
def _squarest(tokens: int) -> tuple[int, int]:
    """So many tokens as a grid, down and across."""
    down = next(n for n in range(isqrt(tokens), 0, -1) if tokens % n == 0)
    return down, tokens // down
