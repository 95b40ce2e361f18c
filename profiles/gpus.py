"""Model and GPU profiles, read from `models.toml` and `gpus.toml`: figures as data, no torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.resources import files

from pydantic import Field

from profiles.gpu_pasted import loose_counts, no_whole_card, unpasted, with_mib
from profiles.gpu_slips import (
    SHARES_MEMORY,
    count_in,
    enumerated,
    long_form,
    nearest,
    other_maker,
    same_digits,
)
from profiles.records import Frozen
from profiles.settings import MOST_PROCESSES
from profiles.sizes import MIB

# Compute capability from which on torch multiplies FP8 codes with scales a row.
WITH_FP8 = (8, 9)
# "12GB", "12 GB", "12 GiB", "12g"; not the 10G of "A10G".
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)\s*g(?:i?b)?\b")
# "A100 80", "3060-12": a number at the end, of a size that memory has.
_BARE_SIZE = re.compile(r"(?<=[\w)])[\s_-]+\(?(\d{1,3})\)?\s*$")
_MIB_APART = 0.07  # of the memory: ECC and older drivers take so much of what is sold
# Words that do not distinguish one card from another.
_NOISE = re.compile("nvidia|geforce|tesla|gpu|generation|edition|with|design")


class GpuProfile(Frozen):
    """One card with one size of memory. `gpus.toml` says what the figures mean."""

    key: str
    name: str = Field(description="what NVML calls it; cards of several sizes share one")
    aliases: tuple[str, ...] = ()
    memory_gb: float = Field(gt=0, description="as sold, in the seller's GB (GiB of chips)")
    visible_mib: int = Field(gt=0, description="total that nvidia-smi reports, in MiB")
    visible_known: bool = Field(description="False: `visible_mib` is an estimate")
    compute_capability: tuple[int, int]
    bandwidth_gb_s: float = Field(gt=0, description="of the card's memory, in 1e9 bytes/s")
    bf16_tflops: float | None = Field(None, gt=0, description="dense, accumulating in fp32")
    fp16_tflops: float = Field(gt=0, description="dense, accumulating in fp32")
    fp32_tflops: float = Field(gt=0, description="without tensor cores")
    pcie_gb_s: float = Field(gt=0, description="from pinned host memory, in 1e9 bytes/s")
    source: str
    rebuilt_gb: tuple[float, ...] = Field((), description="of cards to which memory was soldered")
    rare: bool = Field(False, description="left out of the pages that list cards")

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def title(self) -> str:
        """Short name and memory, such as `RTX 3060 (12 GB)`."""
        return f"{_label(self)} ({self.memory_gb:g} GB)"

    @property
    def visible_bytes(self) -> int:
        """Total memory as NVML counts it; CUDA reports a few hundred MiB less."""
        return self.visible_mib * MIB

    def rate_flops(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in "bf16", "fp16" or "fp32".

        Raises ValueError for another dtype, and for bf16 on a card without it.
        """
        rates = {"bf16": self.bf16_tflops, "fp16": self.fp16_tflops, "fp32": self.fp32_tflops}
        if dtype not in rates:
            raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(rates)}")
        tflops = rates[dtype]
        if tflops is None:
            raise ValueError(f"{self.title} does not compute in {dtype}")
        return tflops * 1e12


@cache
def gpus() -> dict[str, GpuProfile]:
    """All cards by key."""
    text = (files("profiles") / "gpus.toml").read_text(encoding="utf-8")
    return {key: GpuProfile(key=key, **row) for key, row in tomllib.loads(text).items()}


def find_gpu(text: str) -> GpuProfile:
    """The card that a person means by `text`: the first of `possible_gpus`.

    A plan that fits this card fits the others too, except rare ones with less memory. Raises
    ValueError.
    """
    return possible_gpus(text)[0]


def possible_gpus(text: str) -> list[GpuProfile]:
    """The cards that `text`, such as "3060", "rtx3060 12gb" or "A100 80", may mean.

    Case, spaces, hyphens, the order of words and the words NVIDIA and GeForce do not matter;
    Laptop, Ti and SUPER do. If `text` leaves open the memory or the form factor, several cards
    match: those with the least memory come first, and among these the slowest. Raises ValueError,
    which suggests similar names, if `text` names no card, cards of several models, or a size that
    is not sold.
    """
    try:
        return _possible(text)
    except ValueError:
        name, mib = with_mib(unpasted(text))
        if mib is None and name in ("", text):
            raise
        with suppress(ValueError):
            cards = _possible(name)
            return cards if mib is None else [_nearest_in_memory(cards, mib)]
        raise


def _possible(text: str) -> list[GpuProfile]:
    """`possible_gpus` of a bare name, without what people paste around it. Raises ValueError."""
    if text in gpus():
        return [gpus()[text]]
    if cards := _named(text):
        return _in_order(cards)
    lowered = text.lower()
    for pattern in (_SIZE, _BARE_SIZE):
        sizes = [float(size) for size in pattern.findall(lowered)]
        name = pattern.sub(" ", lowered)
        if sizes and (cards := _named(name)):
            return _in_order(_of_size(cards, sizes[-1], text, _named(f"{name} laptop")))
    raise ValueError(_no_gpu(text))


def find_gpus(text: str) -> tuple[int, list[GpuProfile]]:
    """How many cards a person means, and which they may be: "2x RTX 3090", "A100 40GB x4", or one.

    Raises ValueError as `possible_gpus` does, for a number that no plan has, and for cards that
    differ: one plan runs on all.
    """
    if several := _one_by_one(text):
        return several
    count, name = count_in(text)
    try:
        return 1, possible_gpus(text)
    except ValueError:
        for number, one in loose_counts(text):
            with suppress(ValueError):
                return number, possible_gpus(one)
        if name == text or (count > MOST_PROCESSES and other_maker(text)):
            raise
    if not name:
        raise ValueError(f"{text!r} is a number without a name; give one such as '2x RTX 3090'")
    if not 1 <= count <= MOST_PROCESSES:
        raise ValueError(f"{text!r}: got {count} cards; allowed: 1 to {MOST_PROCESSES}")
    return count, possible_gpus(name)


def _one_by_one(text: str) -> tuple[int, list[GpuProfile]] | None:
    """The cards of "RTX 3090, RTX 3090", if all parts are cards. Raises ValueError if they differ:
    one plan runs on all."""
    parts = [count_in(part) for part in enumerated(text)]
    total, names = sum(count for count, _ in parts), [name for _, name in parts]
    try:
        cards = [possible_gpus(name)[0] for name in names]
    except ValueError:
        return None
    if len(cards) < 2:
        return None
    if len({card.key for card in cards}) == 1:
        return find_gpus(f"{total}x {names[0]}")
    weakest = _in_order(cards)[0].title
    raise ValueError(
        f"{text!r} names cards that differ: one plan runs on all, and the weakest decides; "
        f"give '{total}x {weakest}'"
    )


def gpu_by_nvml(name: str, total_bytes: int | None) -> GpuProfile | None:
    """The probed card that NVML calls `name`; of several sizes, the one nearest `total_bytes`.

    None for a card that is not in the catalogue, and for a MIG instance: it is part of a card.
    """
    name = name.removeprefix("NVIDIA ")
    cards = [card for card in gpus().values() if card.name.removeprefix("NVIDIA ") == name]
    if not cards or total_bytes is None:
        return _in_order(cards)[0] if cards else None
    return min(cards, key=lambda card: abs(card.visible_bytes - total_bytes))


def _in_order(cards: Iterable[GpuProfile]) -> list[GpuProfile]:
    """Those with the least memory first, of these the slowest; rare ones last."""
    return sorted(
        cards,
        key=lambda card: (card.rare, card.memory_gb, card.bandwidth_gb_s, card.fp16_tflops),
    )


def _rebuilt(card: GpuProfile, size: float) -> GpuProfile:
    """The card with other memory soldered on, as workshops sell it; its other figures stay."""
    return card.model_copy(update={
        "key": f"{card.key.rsplit('-', 1)[0]}-{size:g}gb",
        "memory_gb": size,
        "visible_mib": round(card.visible_mib / card.memory_gb * size),
        "visible_known": False,
        "rare": True,
    })  # fmt: skip


def _nearest_in_memory(cards: Iterable[GpuProfile], mib: int) -> GpuProfile:
    """The card that nvidia-smi shows with about `mib` MiB. Raises ValueError if there is none."""
    variants = [one for card in cards
                for one in (card, *(_rebuilt(card, size) for size in card.rebuilt_gb))]  # fmt: skip
    best = min(variants, key=lambda card: abs(card.visible_mib - mib))
    if abs(best.visible_mib - mib) > _MIB_APART * mib:
        raise ValueError(f"no {_label(best)} has {mib} MiB")
    return best


def _label(card: GpuProfile) -> str:
    return card.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _spelled(text: str) -> str:
    """`text` without what people write differently: "GeForce RTX-3060 Ti" is "rtx3060ti"."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    return re.sub("mobile|notebook", "laptop", _NOISE.sub("", letters))


@cache
def _spellings() -> dict[str, tuple[GpuProfile, ...]]:
    """Cards by every spelling: name and aliases, each also without its size and without RTX/GTX."""
    found: dict[str, dict[str, GpuProfile]] = {}
    for card in gpus().values():
        for text in (card.name, *card.aliases):
            for spelling in (_spelled(text), _spelled(_SIZE.sub(" ", text.lower()))):
                for short in (spelling, re.sub("^[rg]tx", "", spelling)):
                    found.setdefault(short, {})[card.key] = card
    return {spelling: tuple(cards.values()) for spelling, cards in found.items()}


def _named(text: str) -> tuple[GpuProfile, ...]:
    """The cards that `text` names in any of its spellings, or in another order of its words."""
    spelled = _spelled(text)
    for one in (spelled, long_form(spelled)):
        if cards := _spellings().get(one):
            return cards
    words = _words(text)
    if len(words) < 2 or _SIZE.search(text.lower()):
        return ()
    return tuple(
        card for card in gpus().values()
        if words <= _words(card.name) <= words | {"rtx", "gtx"}
    )  # fmt: skip


def _of_size(
    cards: Iterable[GpuProfile], size: float, text: str, laptops: Iterable[GpuProfile]
) -> list[GpuProfile]:
    """The cards with `size` GB. Raises ValueError if no card, or only a laptop's, has that size."""
    sized = [card for card in cards if card.memory_gb == size]
    sized = sized or [_rebuilt(card, size) for card in cards if size in card.rebuilt_gb]
    if sized:
        return sized
    if mobile := [card.title for card in laptops if card.memory_gb == size]:
        hint = _did_you_mean(mobile)
        raise ValueError(f"{text!r}: only a laptop's is known with {size:g} GB{hint}")
    hint = _did_you_mean(card.title for card in cards)
    raise ValueError(f"{text!r}: no such card is sold with {size:g} GB{hint}")


def _no_gpu(text: str) -> str:
    """Why `text` names no card: no model in it, too little, another maker's, or an unknown one."""
    words = _words(text)
    if part := no_whole_card(text):
        return part
    if not words:
        return f"no GPU is named by {text!r}; name one like 'RTX 3060 12GB'"
    if maker := other_maker(text):
        return f"{text!r} is a GPU of {maker}; only NVIDIA's are known"
    if SHARES_MEMORY.search(re.sub(r"[\s_-]+", " ", text)):
        return f"{text!r} shares its machine's memory; lisa-advise there plans for what is free"
    labels = [_label(card) for card in gpus().values()]
    holding = sorted({label for label in labels if words <= _words(label)}, key=len)
    if len(holding) > 1:
        return f"{text!r} may be any of {len(holding)} GPUs{_did_you_mean(holding)}"
    near = [one for one in _near(text) if not holding or same_digits(text, one)]
    meant = list(dict.fromkeys([*holding, *near]))
    return f"unknown GPU {text!r}{_did_you_mean(_as_sized(text, meant))}"


def _as_sized(text: str, labels: list[str]) -> list[str]:
    """The cards of these names that have the memory in `text`, if any do."""
    sizes = {float(size) for one in (_SIZE, _BARE_SIZE) for size in one.findall(text.lower())}
    sized = [card for card in gpus().values() if card.memory_gb in sizes]
    return [card.title for one in labels for card in sized if _label(card) == one] or labels


def _near(text: str) -> list[str]:
    """Cards with a similar name, with one word less, or with RTX for GTX."""
    model = _SIZE.sub(" ", text.lower())
    if re.search(r"\d", rest := _BARE_SIZE.sub(" ", model)):
        model = rest
    words = re.findall(r"[a-z0-9]+", model)
    spelled = long_form(_spelled(model))
    close = nearest(spelled, _spellings())
    tries = [re.sub("^[rg]tx", "", spelled)]
    tries += [one for one in close if same_digits(spelled, one)]
    tries += ["".join(words[:n] + words[n + 1 :]) for n in range(len(words)) if len(words) > 1]
    found = _labels(tries)
    return found or _labels(close)  # another number is the least likely slip


def _labels(names: Iterable[str]) -> list[str]:
    """The cards of these names, each once."""
    cards = [card for name in names for card in _spellings().get(_spelled(name), ())]
    return list(dict.fromkeys(_label(card) for card in cards))


def _words(text: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+", _SIZE.sub(" ", text.lower()))
    return {word for word in words if not _NOISE.fullmatch(word)}


def _did_you_mean(names: Iterable[str]) -> str:
    first = list(names)[:3]
    return f"; did you mean {' or '.join(first)}?" if first else ""
