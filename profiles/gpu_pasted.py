"""What people paste as a GPU's name: lines of nvidia-smi and lspci, shops' names, MIG instances."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_SMI_ROW = re.compile(r"\s*\|?\s*\d+\s+(\D.*?)\s+(?:On|Off|N/A)\s*\|")
_LISTED = re.compile(r"^\s*(?:GPU )?\d{1,2}[:,]\s+(?=\D)|\s*\(UUID:.*", re.IGNORECASE)
_LSPCI = re.compile(r"\[((?:GeForce|Quadro|RTX|GTX|Tesla|TITAN|[A-Z]{1,2}\d)[^\]]*)\]")
_MOBILE = re.compile(r"Mobile */ *Max-Q|Max-Q */ *Mobile", re.IGNORECASE)  # as lspci has it
_MIB = re.compile(r"[\s,(]+(\d{4,6})\s*MiB\b.*", re.IGNORECASE)
# Whole words that say who made, sells or lends a card, or how it is cooled: never another card.
_SAYS_NOTHING = re.compile(
    r"\b(?:asus(?: dual)?|rog|strix|tuf|prime|msi|(?:ventus|shadow)(?: [23]x)?|suprim|gigabyte|"
    r"aorus|windforce|eagle|aero|evga|ftw3|xc3|zotac|trinity|twin edge|palit|gamingpro|gamerock|"
    r"gainward|phoenix|pny|verto|inno3d|twin x2|galax|kfa2|colorful|igame|gaming|oc|trio|fe|"
    r"founders|lhr|lite hash rate|mod(?:ded)?|sli|nvlink|colab|kaggle|runpod|autodl)\b",
    re.IGNORECASE,
)
_IN_WORDS = {"single": 1, "dual": 2, "two": 2, "triple": 3, "three": 3, "quad": 4, "four": 4,
             "eight": 8}  # fmt: skip
_COUNT_IN_WORDS = re.compile(rf"\s*({'|'.join(_IN_WORDS)})\s+(.*)", re.IGNORECASE)
_COUNT_BARE = re.compile(r"\s*(\d{1,2})\s+(.*\d.*)")  # "4 A100s"
_COUNT_CLOSE = re.compile(r"(.*(?:\d|gb?|ti|d))x(\d{1,2})\s*", re.IGNORECASE)  # "T4x2"
_PARTS = (
    (re.compile(r"\b\d+g\.(\d{1,3})gb\b", re.IGNORECASE), "a MIG instance", 0.95),
    (re.compile(r"\b[a-z]{1,5}\d+[a-z]?-(\d{1,3})[qcba]\b", re.IGNORECASE), "a virtual GPU", 1),
)
_SIZE_ALONE = re.compile(r"\s*([1-9]\d{0,2}(?:\.\d+)?)\s*(?:g(?:i?b)?)?\s*", re.IGNORECASE)


def unpasted(text: str) -> str:
    """A card's name without what surrounds it; letters of other scripts are left out."""
    text = unicodedata.normalize("NFKC", text)
    row, bracket = _SMI_ROW.match(text), _LSPCI.search(text)
    text = row[1] if row else bracket[1] if bracket else _LISTED.sub("", text)
    text = _MOBILE.sub("Mobile", re.sub(r"[^\x00-\x7f]+", " ", text))
    text = _SAYS_NOTHING.sub(" ", text)
    return " ".join(text.split())


def with_mib(text: str) -> tuple[str, int | None]:
    """A name and the MiB that nvidia-smi prints after it, if any."""
    found = _MIB.search(text)
    return (text[: found.start()], int(found[1])) if found else (text, None)


def loose_counts(text: str) -> Iterator[tuple[int, str]]:
    """How many cards a text may name, and the name: "dual 3090", "4 A100s", "T4x2"."""
    for pattern in (_COUNT_IN_WORDS, _COUNT_BARE):
        if first := pattern.fullmatch(text):
            count, names = first.groups()
            for name in (names, names.removesuffix("s")):
                yield _IN_WORDS.get(count.lower()) or int(count), name
    if close := _COUNT_CLOSE.fullmatch(text):
        yield int(close[2]), close[1]


def no_whole_card(text: str) -> str | None:
    """What a text names that is less than a card, with the size to give instead; else None."""
    for pattern, what, share in _PARTS:
        if found := pattern.search(text):
            size = f"{int(found[1]) * share:g}GiB"
            return f"{text!r} is {what}; give the memory that nvidia-smi says it has: --vram {size}"
    if found := _SIZE_ALONE.fullmatch(text):
        return f"no GPU is named by {text!r}; a card of that size is --vram {float(found[1]):g}GiB"
    if text.rstrip().endswith(("...", "…")):
        return f"{text!r} is cut off; nvidia-smi -L prints the whole name"
    return None
