"""Model profiles: the shapes of every size, from models.toml."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib.resources import files

from profiles.records import Frozen
from profiles.settings import Encoder
from profiles.text import brief


class LlamaShape(Frozen):
    """Decoder sizes: `hidden` and `intermediate` in channels; the norms' epsilon."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    norm_eps: float = 1e-5  # LLaMA 2's


class ClipShape(Frozen):
    """Sizes of CLIP's vision tower; the picture is `image_pixels` square."""

    image_pixels: int
    patch_pixels: int
    hidden: int
    layers: int
    heads: int
    intermediate: int

    @property
    def image_tokens(self) -> int:
        """Patches of one picture, the class token dropped."""
        return (self.image_pixels // self.patch_pixels) ** 2


class SamShape(Frozen):
    """Sizes of SAM's image encoder and mask decoder; the frame is `image_pixels` square."""

    image_pixels: int
    patch_pixels: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    global_layers: tuple[int, ...]
    window_patches: int
    output_channels: int
    decoder_intermediate: int

    @property
    def embedding_pixels(self) -> int:
        """Side of the image embedding [output_channels, side, side]."""
        return self.image_pixels // self.patch_pixels


class ModelProfile(Frozen):
    """One size of LISA."""

    name: str
    title: str
    vocabulary_rows: int
    llama: LlamaShape
    clip: ClipShape
    projector_layers: int
    sam: SamShape
    sources: tuple[str, ...]

    def needs_no_more(self, other: ModelProfile) -> bool:
        """Whether this is `other`, or the same decoder and SAM behind no larger a CLIP."""
        epsilon = {"norm_eps": other.llama.norm_eps}  # which takes no memory
        return self.name == other.name or (
            self.llama.model_copy(update=epsilon) == other.llama
            and self.sam == other.sam
            and self.vocabulary_rows <= other.vocabulary_rows
            and self.projector_layers <= other.projector_layers
            and (self.clip.hidden, self.clip.layers) == (other.clip.hidden, other.clip.layers)
            and self.clip.image_tokens <= other.clip.image_tokens
        )

    @property
    def packaged(self) -> bool:
        """Whether the weights come with this package."""
        return self.sources == ("packaged",)

    @property
    def conversion(self) -> str:
        """The command that makes this model's folder of its sources on the hub."""
        return f"lisa-train convert {' '.join(self.sources)} FOLDER --model {self.name}"


# What fills the roles of the encoders, by the names that feature caches have for it.
ENCODER_NAMES: dict[Encoder, str] = {"vision": "clip", "mask": "sam"}


@cache
def models() -> dict[str, ModelProfile]:
    """All profiles by name."""
    text = (files("profiles") / "models.toml").read_text(encoding="utf-8")
    return {name: ModelProfile(name=name, **row) for name, row in tomllib.loads(text).items()}


def model_profile(name: str) -> ModelProfile:
    """The profile called `name`. Raises ValueError naming the known ones."""
    known = models()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown model {brief(name)}; known: {', '.join(known)}{hint}")
