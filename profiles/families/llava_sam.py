"""LLaVA-1.5 and SAM: LISA as published (Lai et al. 2023, arXiv:2308.00692)."""

from __future__ import annotations

from functools import cached_property

from profiles.families import MASK, VISION, EncoderFacts, ModelProfile
from profiles.records import Frozen
from profiles.settings import Encoder, TrainedPart

# The pool while SAM ViT-H encodes pictures (benchmarks/encoders.jsonl). CLIP's pool is far smaller
# than a training's.
SAM_CACHING_BYTES = 2_845_835_264
# What SAM ViT-H takes beside its products, as bytes at an H100's bandwidth (benchmarks/speed.py).
SAM_MOVED_BYTES = 132e9


# Values of SAM's mask decoder that a mask needs: all but the heads of the other candidates.
MASK_VALUES, TINY_MASK_VALUES = 3_506_304, 551_744


class _VisionTransformer(Frozen):
    """Sizes of a vision transformer; the picture is `image_pixels` square."""

    image_pixels: int
    patch_pixels: int
    hidden: int
    layers: int
    heads: int
    intermediate: int

    def _flops(self, positions: int) -> float:
        """Of its linears: 2 FLOP a weight and position."""
        layer = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return 2.0 * self.layers * layer * positions


class ClipShape(_VisionTransformer):
    """Sizes of CLIP's vision tower."""

    @property
    def image_tokens(self) -> int:
        """Patches of one picture, the class token dropped."""
        return (self.image_pixels // self.patch_pixels) ** 2

    @property
    def flops(self) -> float:
        """Products of one picture, forward."""
        return self._flops(self.image_tokens + 1)


class SamShape(_VisionTransformer):
    """Sizes of SAM's image encoder and mask decoder; its picture is the frame."""

    global_layers: tuple[int, ...]
    window_patches: int
    output_channels: int
    decoder_intermediate: int

    @property
    def embedding_pixels(self) -> int:
        """Side of the image embedding [output_channels, side, side]."""
        return self.image_pixels // self.patch_pixels

    @property
    def flops(self) -> float:
        """Products of one picture, forward, without those of attention."""
        return self._flops(self.embedding_pixels**2)


class Profile(ModelProfile):
    """One size of LISA: a LLaMA decoder, CLIP with its projector, and SAM."""

    new_tokens = 3  # [SEG], and those around a picture
    reserved = ("<im_start>", "<im_end>", "</s>")
    vocabulary = "LLaMA"

    clip: ClipShape
    projector_layers: int
    sam: SamShape

    @cached_property
    def encoders(self) -> dict[Encoder, EncoderFacts]:
        """SAM's image encoder and CLIP's vision tower."""
        clip, sam = self.clip, self.sam
        side = sam.embedding_pixels
        return {
            MASK: EncoderFacts(
                name="sam",
                sizes=sam.model_dump_json(),
                pixels={"pixels": (1, 3, sam.image_pixels, sam.image_pixels)},
                features={"features": (1, sam.output_channels, side, side)},
                flops=sam.flops,
                caching_bytes=0 if self.packaged else SAM_CACHING_BYTES,
                blocks=sam.layers,
                moved_bytes=0 if self.packaged else SAM_MOVED_BYTES,
            ),
            VISION: EncoderFacts(
                name="clip",
                sizes=clip.model_dump_json(),
                pixels={"pixels": (1, 3, clip.image_pixels, clip.image_pixels)},
                features={"features": (1, clip.image_tokens, clip.hidden)},
                flops=clip.flops,
                caching_bytes=0,
                blocks=clip.layers,
            ),
        }

    @property
    def own_parts(self) -> dict[TrainedPart, int]:
        """The projector, the two linears to SAM's prompt, and SAM's mask decoder."""
        hidden, prompt = self.decoder.hidden, self.sam.output_channels
        deeper = (self.projector_layers - 1) * hidden * (hidden + 1)
        return {
            "projector": (self.clip.hidden + 1) * hidden + deeper,
            "text_hidden_fcs": hidden * (hidden + 1) + prompt * (hidden + 1),
            "mask_decoder": TINY_MASK_VALUES if self.packaged else MASK_VALUES,
        }

    @property
    def frame_pixels(self) -> int:
        """Side of SAM's padded frame."""
        return self.sam.image_pixels

    @property
    def most_image_tokens(self) -> int:
        """CLIP's patches: the same for every picture."""
        return self.clip.image_tokens

    def needs_no_more(self, other: ModelProfile) -> bool:
        """Whether this is `other`, or the same decoder and SAM behind no larger a CLIP."""
        if not isinstance(other, Profile):
            return False
        epsilon = {"norm_eps": other.decoder.norm_eps}  # which takes no memory
        return self.name == other.name or (
            self.decoder.model_copy(update=epsilon) == other.decoder
            and self.sam == other.sam
            and self.vocabulary_rows <= other.vocabulary_rows
            and self.projector_layers <= other.projector_layers
            and (self.clip.hidden, self.clip.layers) == (other.clip.hidden, other.clip.layers)
            and self.clip.image_tokens <= other.clip.image_tokens
        )
