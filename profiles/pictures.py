"""How large a picture a model looks at, in pixels, where its tokens follow from the size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Protocol

from profiles.families import ModelProfile
from profiles.findings import Finding
from profiles.models import model_profile, models

LEAST, LARGEST = 4096, 1 << 24  # pixels that a limit may name
LIMITS = ("min_pixels", "max_pixels")


class Pictures(Protocol):
    """The settings of a plan that are about pictures."""

    @property
    def model(self) -> str:
        """A name in models.toml."""

    @property
    def min_pixels(self) -> int | None:
        """A smaller picture is enlarged to it."""

    @property
    def max_pixels(self) -> int | None:
        """A larger picture is shrunk to it."""


def profile_of(plan: Pictures) -> ModelProfile:
    """The plan's model, looking at pictures as the plan says. Raises ValueError."""
    profile = model_profile(plan.model)
    if plan.min_pixels is None or plan.max_pixels is None:
        return profile
    return _limited(profile, plan.min_pixels, plan.max_pixels)


@cache
def _limited(profile: ModelProfile, least: int, most: int) -> ModelProfile:
    limits = {"min_pixels": least, "max_pixels": most}
    given = {name: getattr(profile, name) for name in type(profile).model_fields}
    return type(profile).model_validate(given | limits)  # what follows from them is not kept


def limits_for(plan: Pictures, image_tokens: int | None) -> dict[str, int]:
    """Settings that limit pictures to the number of tokens that the data's largest takes.

    Empty where the plan's own limit is no higher, or the model sees all pictures at one size.
    """
    if image_tokens is None or plan.max_pixels is None:
        return {}
    most = profile_of(plan).most_image_tokens
    if image_tokens >= most:
        return {}
    limit = image_tokens * (plan.max_pixels // most)
    return {"min_pixels": min(plan.min_pixels or limit, limit), "max_pixels": limit}


def shrinks_pictures(plan: Pictures) -> bool:
    """Whether the plan looks at smaller pictures than its model usually does."""
    return profile_of(plan).most_image_tokens < model_profile(plan.model).most_image_tokens


def with_picture_limits(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the limits that are not given, where the model has some.

    If the given limit contradicts the other one's usual value, the other one moves.
    """
    result = dict(data)
    name = result.get("model", "tiny")
    profile = models().get(name) if isinstance(name, str) else None
    if profile is None or profile.min_pixels is None or profile.max_pixels is None:
        return result
    least, most = (result.get(key) for key in LIMITS)
    if most is None:
        known = least if type(least) is int else 0
        result["max_pixels"] = max(profile.max_pixels, known)
    if least is None:
        known = most if type(most) is int else LARGEST
        result["min_pixels"] = max(LEAST, min(profile.min_pixels, known))
    return result


def forget_other_limits(data: dict[str, Any], given: set[str]) -> None:
    """Drop the limits that belonged to another model, or that contradict a given one."""
    for limit in LIMITS:
        if given & {"model", *LIMITS} and limit not in given:
            data.pop(limit)


def picture_contradictions(plan: Pictures) -> Iterator[Finding]:
    """Why these limits are refused."""
    least, most = plan.min_pixels, plan.max_pixels
    fixed = plan.model in models() and models()[plan.model].max_pixels is None
    for name, limit in zip(LIMITS, (least, most), strict=True):
        if fixed and limit is not None:
            yield Finding(name, f"{plan.model} looks at every picture at one size", str(limit),
                          f"leave {name} out")  # fmt: skip
    if least is not None and most is not None and least > most:
        yield Finding("min_pixels", "above max_pixels", f"{least} > {most}",
                      "leave min_pixels out")  # fmt: skip
