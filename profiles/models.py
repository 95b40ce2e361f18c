"""Model profiles: the shapes of every size, from models.toml."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from profiles.families import ModelProfile
from profiles.text import brief

# Advised where none is asked for: the first that fits. Both were already trained to segment.
DEFAULT_MODELS = ("sa2va-qwen3-vl-4b", "sa2va-qwen3-vl-2b")


@cache
def models() -> dict[str, ModelProfile]:
    """All profiles by name."""
    text = (files("profiles") / "models.toml").read_text(encoding="utf-8")
    return {name: _profile(name, row) for name, row in tomllib.loads(text).items()}


def _profile(name: str, row: dict[str, Any]) -> ModelProfile:
    """A row of the file, read by its family's module."""
    family = import_module(f"profiles.families.{row['family']}")
    profile: ModelProfile = family.Profile(name=name, **row)
    return profile


def converted() -> list[str]:
    """The models whose weights are made of published checkpoints."""
    return [name for name, profile in models().items() if not profile.packaged]


def reserved_tokens() -> tuple[str, ...]:
    """Tokens with a meaning to some model: data without them fits every one."""
    return tuple(dict.fromkeys(t for profile in models().values() for t in profile.reserved))


def model_profile(name: str) -> ModelProfile:
    """The profile called `name`. Raises ValueError naming the known ones."""
    known = models()
    if name in known:
        return known[name]
    sources = {profile.sources[0].lower(): name for name, profile in known.items()}
    words = {source.rpartition("/")[2]: name for source, name in sources.items()} | sources
    words |= {name: name for name in known}
    close = difflib.get_close_matches(name.lower(), words, n=1)
    hint = f"; did you mean {words[close[0]]!r}?" if close else ""
    raise ValueError(f"unknown model {brief(name)}; known: {', '.join(known)}{hint}")
