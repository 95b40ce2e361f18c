"""The card that a plan is for: this machine's, or one that the user names."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from advisor.machine.budget import (
    WHAT_IF_HOST_BYTES,
    named_gpu,
    size_text,
    what_if_gpu,
)
from advisor.machine.gpu import Gpu, Machine
from profiles.gpus import GpuProfile


@dataclass(frozen=True)
class Target:
    """A card that is not here: of a size, or of the catalogue, under a system."""

    vram_bytes: int | None = None
    card: GpuProfile | None = None
    windows: bool = False
    ram_bytes: int | None = None
    sized: bool = False  # the user has said how much memory the card has

    @property
    def host_bytes(self) -> int:
        """Host memory of the machine that it is in, or is assumed to be in."""
        return self.ram_bytes or WHAT_IF_HOST_BYTES

    @property
    def gpu(self) -> Gpu:
        """What a probe would say of it."""
        if self.card is not None:
            return named_gpu(self.card, self.windows)
        return what_if_gpu(self.vram_bytes or 0, self.windows)

    @property
    def options(self) -> str:
        """The command line's options that name it."""
        system = " --os windows" if self.windows else ""
        system += f" --ram {size_text(self.ram_bytes)}" if self.ram_bytes else ""
        if self.card is not None:
            return f"--gpu {shlex.quote(self.card.key)}{system}"
        return f"--vram {size_text(self.vram_bytes or 0)}{system}"


def gpu_for(machine: Machine, target: Target | None) -> Gpu | None:
    """The card that is asked about: the named one, else this machine's best."""
    return pick_gpu(machine) if target is None else target.gpu


def pick_gpu(machine: Machine) -> Gpu | None:
    """The visible GPU with the most free bytes; one whose memory is unknown comes last."""
    usable = [gpu for gpu in machine.gpus if gpu.lost is None]
    return max(usable, key=lambda gpu: gpu.free_bytes or 0, default=None)
