"""Model profiles, read from `models.toml`: shapes as data, no torch."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LlamaShape(_Frozen):
    """Decoder sizes: `hidden` and `intermediate` in channels."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


class ClipShape(_Frozen):
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


class SamShape(_Frozen):
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


class ModelProfile(_Frozen):
    """One size of LISA."""

    name: str
    title: str
    vocabulary_rows: int
    llama: LlamaShape
    clip: ClipShape
    projector_layers: int
    sam: SamShape
    sources: tuple[str, ...]


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
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown model {name!r}; known: {', '.join(known)}{hint}")
