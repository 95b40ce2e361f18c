"""A model family: everything that differs between kinds of models is behind this interface.

`trainer/model/families/<name>/family.py` holds FAMILY; its torch-free half is
`profiles/families/<name>.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from profiles.families import ModelProfile
from profiles.settings import Encoder
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.tokenizer import ConversationTokenizer

P = TypeVar("P", bound=ModelProfile)
# A decoder's settings that no tensor's shape shows.
SHAPELESS = "rms_norm_eps", "num_attention_heads", "num_key_value_heads"


class NamesError(ValueError):
    """A checkpoint whose tensor names can be read in more than one way."""


class Family(ABC, Generic[P]):
    """What the rest of the trainer needs from a kind of model."""

    model: ClassVar[type[SegmentationModel]]
    tokenizer: ClassVar[type[ConversationTokenizer]]
    pixels_version: ClassVar[int] = 1  # raise it when pixels come out differently

    @abstractmethod
    def skeleton(self, profile: P, tokenizer: ConversationTokenizer) -> SegmentationModel:
        """The model as the libraries make it; the caller makes sure that nothing is allocated."""

    @abstractmethod
    def pixels(self, image: NDArray[np.uint8], encoder: Encoder, profile: P) -> dict[str, Tensor]:
        """An encoder's input for one picture [H, W, 3], with an axis for the picture.

        Tensors of several pictures are joined along their first axis, pixels and features alike.
        """

    # Published checkpoints.

    fresh: ClassVar[str] = ""  # prefix of what may be missing in all sources, and starts afresh
    givers: ClassVar[tuple[tuple[str, str], ...]] = ()  # (prefix, checkpoint that has such tensors)

    def target_names(self, names: Iterable[str]) -> Mapping[str, str | None]:
        """Each name of one checkpoint -> the model's; None: of no use. Raises NamesError."""
        return {name: name for name in names}

    def other_settings(self, config: Mapping[str, Any], profile: P) -> list[str]:
        """Settings in a checkpoint's config.json that differ here and do not show in any shape."""
        del config, profile
        return []

    def likely_model(self, needed: Iterable[str], offered: Iterable[str]) -> str:
        """A hint at the size, other than `{model}`, that the sources may belong to; '' for none."""
        del needed, offered
        return ""


def decoder_table(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's settings in a config.json; empty if they are no table."""
    found = config.get("text_config", config)
    return found if isinstance(found, Mapping) else {}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """In words, each of our settings that has another value there."""
    return [
        f"says {name} {theirs[name]}, the model computes with {value}"
        for name, value in ours.items()
        if theirs.get(name) not in (None, value)
    ]


def family_of(profile: ModelProfile) -> Family[Any]:
    """The family of a model."""
    family: Family[Any] = import_module(f"trainer.model.families.{profile.family}.family").FAMILY
    return family
