"""The card that a plan is for: this machine's, or one that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.machine.budget import (
    WHAT_IF_HOST_BYTES,
    named_gpu,
    size_text,
    what_if_gpu,
)
from advisor.machine.gpu import Gpu, Machine
from profiles.gpus import GpuProfile
from profiles.text import quoted


@dataclass(frozen=True)
class Target:
    """A card that is not in this machine: a size or a catalogue entry, and its operating system."""

    vram_bytes: int | None = None
    card: GpuProfile | None = None
    windows: bool = False
    ram_bytes: int | None = None
    others: tuple[GpuProfile, ...] = ()  # that its name may mean as well
    count: int = 1  # of such cards in a machine, as named in "2x RTX 3090"

    def host_bytes(self, cards: int) -> int:
        """Host bytes of the machine with these cards: as named, or as assumed for their number."""
        return self.ram_bytes or cards * WHAT_IF_HOST_BYTES

    @property
    def gpu(self) -> Gpu:
        """The card as a probe would report it."""
        if self.card is not None:
            return named_gpu(self.card, self.windows)
        return what_if_gpu(self.vram_bytes or 0, self.windows)

    @property
    def title(self) -> str:
        """The card's name, with its memory."""
        return self.card.title if self.card is not None else self.gpu.name

    @property
    def options(self) -> str:
        """The command line's options that name it."""
        system = " --os windows" if self.windows else ""
        system += f" --ram {size_text(self.ram_bytes)}" if self.ram_bytes else ""
        if self.card is not None:
            return f"--gpu {quoted(self.card.key)}{system}"
        return f"--vram {size_text(self.vram_bytes or 0)}{system}"


def gpu_for(machine: Machine, target: Target | None, count: int = 1) -> Gpu | None:
    """The card to plan for: the named one, else the worst of this machine's `count` best.

    One plan runs on all of them, so it must fit the card with the least free memory and use only
    what the oldest can compute.
    """
    if target is not None:
        return target.gpu
    cards = best_gpus(machine, count)
    if len(cards) < 2:
        return next(iter(cards), None)
    ages = [card.compute_capability for card in cards]
    oldest = None if None in ages else min(age for age in ages if age is not None)
    return cards[-1].model_copy(update={"compute_capability": oldest})


def pick_gpu(machine: Machine) -> Gpu | None:
    """The visible GPU with the most free bytes; one whose memory is unknown comes last."""
    return next(iter(best_gpus(machine, 1)), None)


def best_gpus(machine: Machine, count: int) -> list[Gpu]:
    """The `count` visible GPUs with the most free bytes, or all that there are, best first."""
    usable = [gpu for gpu in machine.gpus if gpu.lost is None]
    return sorted(usable, key=lambda gpu: -(gpu.free_bytes or 0))[:count]


def cards_text(names: Sequence[str], nodes: int = 1) -> str:
    """The cards in words, such as "2 x RTX 3090 (24 GB) in each of 2 machines"."""
    title = " + ".join(names) if len(set(names)) > 1 else names[0]
    title = f"{len(names)} x {title}" if len(names) > 1 == len(set(names)) else title
    return f"{title} in each of {nodes} machines" if nodes > 1 else title
