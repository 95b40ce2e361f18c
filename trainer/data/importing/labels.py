"""Labels that are spelled differently and mean one class."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from profiles.text import some

_NAMED = 3


def composed(text: str) -> str:
    """Composed letters: file names of a Mac have separate accents."""
    return unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1000)  # labels repeat
def label_key(label: str) -> str:
    """A key for all spellings of a label; COCO's Coffee_cup is read as coffee cup."""
    return " ".join(re.sub("[_:]", " ", composed(label)).lower().split())


def spelled_differently(labels: set[str]) -> list[str]:
    """A note on labels that are one class in several spellings; or none."""
    by_key: dict[str, list[str]] = {}
    for label in sorted(labels):
        by_key.setdefault(label_key(label), []).append(repr(label))
    several = [" = ".join(those) for those in by_key.values() if len(those) > 1]
    what = "labels that differ only in capitals, blanks, _ or : are read as one"
    return [f"{what}: {some(several, _NAMED)}"] if several else []
