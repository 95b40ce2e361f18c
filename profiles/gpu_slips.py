"""What people write instead of a GPU's name: slips, counts, and names of other makers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COUNT_FIRST = re.compile(r"\s*(\d{1,18})\s*[x×*]\s*(.*)", re.IGNORECASE)
_COUNT_LAST = re.compile(r"(.*\S)(?:\s+x|\s*[×*])\s*(\d{1,18})\s*", re.IGNORECASE)
_BETWEEN_CARDS = re.compile(r"\s*[,;+&/]\s*|\s+(?:and|plus)\s+", re.IGNORECASE)
_MAKERS = {
    "AMD": r"amd|radeon|instinct|vega|rx ?\d{3,4}|mi ?\d{2,3}[ax]?\b|w\d{4}\b|\d{4} ?xtx?\b"
    r"|r9\d{3}\b|strix halo|8060s",
    "Apple": r"apple|macbook|m[1-5]( ?(pro|max|ultra))?$",
    "Intel": r"intel|iris|gaudi|\barc\b|a(310|380|580|750|770)m?\b|b(50|60|570|580)\b",
    "Google": r"tpu",
    "Huawei": r"huawei|ascend|910[abc]\d?|310p|昇腾|华为",
    "Cambricon": r"cambricon|mlu\d*|寒武纪",
    "Moore Threads": r"moore threads|mtt|摩尔线程",
    "Hygon": r"hygon|dcu|海光",
    "Amazon": r"trainium|inferentia",
}
# Devices on one die with the host's memory, by NVML's name and by what they are sold as.
SHARES_MEMORY = re.compile(
    r"\b(GB10|GX10|DGX Spark|Orin|Thor|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE
)
_SHORT = 4  # letters: names such as M40 and L40, where another letter is another card
_LONG = 8  # letters: in names of this length two may be wrong


def count_in(text: str) -> tuple[int, str]:
    """How many cards a text such as "2x RTX 3090" or "RTX 3090 x2" names, and the name, if any.

    Of two numbers, as in 3090*4, the smaller one is the count.
    """
    first, last = _COUNT_FIRST.fullmatch(text), _COUNT_LAST.fullmatch(text)
    found = [(int(first[1]), first[2])] if first else []
    found += [(int(last[2]), last[1])] if last else []
    return min(found, default=(1, text))


def enumerated(text: str) -> list[str]:
    """The names in "RTX 3090, RTX 4090", "RTX 3090 + RTX 4090" and the like."""
    return [part for part in _BETWEEN_CARDS.split(text) if part]


def other_maker(text: str) -> str | None:
    """The maker of a GPU that is not NVIDIA's, as far as its name says so."""
    words = " ".join(re.split(r"[\s_-]+", text.lower().strip()))
    return next((maker for maker, names in _MAKERS.items() if re.search(rf"\b(?:{names})", words)),
                None)  # fmt: skip


def long_form(spelled: str) -> str:
    """`spelled` with SUPER for the letter s and Laptop for m, as in 4070tis, 4080s and 3060m."""
    whole = re.sub(r"(\d{4}(?:ti)?)s(?=$|maxq)", r"\1super", spelled)
    return re.sub(r"(\d{4}(?:ti)?)m$", r"\1laptop", whole)


def nearest(spelled: str, known: Iterable[str]) -> list[str]:
    """The names in `known` that one or two typing errors turn into `spelled`, closest first."""
    most = 2 if len(spelled) >= _LONG else 1
    found = []
    for one in known:
        slips = _slips(spelled, one) if _may_be_near(spelled, one, most) else most + 1
        swapped = sorted(one) == sorted(spelled)
        if 0 < slips <= most and (swapped or len(one) != len(spelled) or _may_differ(spelled)):
            found.append((slips, one))
    return [one for _, one in sorted(found)]


def same_digits(spelled: str, other: str) -> bool:
    """Whether both have the same digits, in any order."""
    return sorted(re.sub(r"\D", "", spelled)) == sorted(re.sub(r"\D", "", other))


def _may_differ(spelled: str) -> bool:
    """Whether a wrong letter or digit may be a typing error: not in M40, as L40 is a card too."""
    return len(spelled) > _SHORT or spelled.isdigit()


def _may_be_near(text: str, other: str, most: int) -> bool:
    """A quick test before the full distance: whether lengths and letters allow so few errors."""
    if abs(len(other) - len(text)) > most:
        return False
    missing = 0
    for letter in text:
        rest = other.replace(letter, "", 1)
        missing += rest == other
        if missing > most:
            return False
        other = rest
    return True


def _slips(text: str, other: str) -> int:
    """Letters left out, added, changed, or swapped with the next (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(text, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and text[i - 2] == wanted:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
