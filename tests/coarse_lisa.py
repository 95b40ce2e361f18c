"""lisa-tiny on every second of SAM's places, in a row and in a column.

Its mask decoder is most of a step, and few tests are about the number of places. The encoder has
weights for places: what runs it gives its features to `thinned`, or has random ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from profiles.families.llava_sam import Profile
from profiles.models import models

NAME = "coarse-lisa"


def register() -> None:
    """Have the house know the size."""
    tiny = models()["tiny"]
    assert isinstance(tiny, Profile)
    sam = tiny.sam.model_copy(update={"patch_pixels": 2 * tiny.sam.patch_pixels})
    models()[NAME] = tiny.model_copy(update={"name": NAME, "sam": sam})


def forget() -> None:
    """Undo `register`: other tests list the sizes that there are."""
    models().pop(NAME, None)


def thinned(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """lisa-tiny's features of SAM [B, E, G, G] -> those of this size."""
    return {name: value[:, :, ::2, ::2] for name, value in features.items()}
