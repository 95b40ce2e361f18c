"""A pynvml that answers as told: each Card is one GPU's behaviour, `install` puts it in place.

Only what the probe calls is here; anything else fails loudly with AttributeError.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

GIB = 2**30


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class NVMLLibraryMismatchError(Exception):
    pass


@dataclass
class Card:
    """One GPU, or one MIG instance. An exception as a value is raised when it is asked for."""

    uuid: str = "GPU-aaaa1111"
    name: str | bytes = "NVIDIA GeForce RTX 4060"
    total: int = 8 * GIB
    free: int = round(7.8 * GIB)
    reserved: int = GIB // 4
    capability: tuple[int, int] | Exception = (8, 9)
    display: int | Exception = 0
    compute: dict[int, int | None] | Exception = field(default_factory=dict)
    graphics: dict[int, int | None] | Exception = field(default_factory=dict)
    handle_error: Exception | None = None
    memory_error: Exception | None = None
    memory_v2: bool = True
    ecc: list[int] | None = None
    pcie: tuple[int, int] | None = (4, 16)
    driver_model: list[int] | None = None
    mig: list[Card | None] | None = None  # None in the list: an empty slot


class FakeNvml(ModuleType):
    """The module; `cards` in PCI order."""

    nvmlMemory_v2 = 0x02000028

    def __init__(self, *cards: Card, init_error: Exception | None = None) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.init_error = init_error
        self.open = 0
        for error in (
            NVMLError,
            NVMLError_NotSupported,
            NVMLError_NotFound,
            NVMLError_FunctionNotFound,
            NVMLError_GpuIsLost,
            NVMLLibraryMismatchError,
        ):
            setattr(self, error.__name__, error)

    def nvmlInit(self):
        if self.init_error:
            raise self.init_error
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.95.05"

    def nvmlSystemGetCudaDriverVersion(self):
        return 13000

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.cards[index].handle_error:
            raise self.cards[index].handle_error
        return self.cards[index]

    def nvmlDeviceGetName(self, card):
        return card.name

    def nvmlDeviceGetUUID(self, card):
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return _value(card.capability)

    def nvmlDeviceGetDisplayActive(self, card):
        return _value(card.display)

    def nvmlDeviceGetMemoryInfo(self, card, version=None):
        if card.memory_error:
            raise card.memory_error
        if version and not card.memory_v2:
            raise NVMLError_FunctionNotFound("Function Not Found")
        memory = SimpleNamespace(total=card.total, free=card.free, used=card.total - card.free)
        if version:
            memory.reserved = card.reserved
        return memory

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return _processes(card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card):
        return _processes(card.graphics)

    def nvmlDeviceGetEccMode(self, card):
        return _supported(card.ecc)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card):
        return _supported(card.pcie)[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, card):
        return _supported(card.pcie)[1]

    def nvmlDeviceGetDriverModel(self, card):
        return _supported(card.driver_model)

    def nvmlDeviceGetMigMode(self, card):
        if card.mig is None:
            raise NVMLError_NotSupported("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return len(card.mig)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, slot):
        if card.mig[slot] is None:
            raise NVMLError_NotFound("Not Found")
        return card.mig[slot]


def _supported(answer):
    if answer is None:
        raise NVMLError_NotSupported("Not Supported")
    return answer


def _value(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


def _processes(answer):
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in _value(answer).items()]


def install(
    monkeypatch: pytest.MonkeyPatch, *cards: Card, init_error: Exception | None = None
) -> FakeNvml:
    """Put a fake pynvml with these cards in place, and no CUDA_* variables."""
    fake = FakeNvml(*cards, init_error=init_error)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return fake


def lost_card() -> Card:
    """A card that has fallen off the bus."""
    return Card(handle_error=NVMLError_GpuIsLost("GPU is lost"))


def mig_card() -> Card:
    """An A100 cut into two instances, with an empty slot between them."""
    instances = [
        Card(
            uuid="MIG-one",
            name="NVIDIA A100 MIG 1g.10gb",
            total=10 * GIB,
            free=round(9.6 * GIB),
            capability=NVMLError_NotSupported("Not Supported"),
            compute=NVMLError_NotSupported("Not Supported"),
        ),
        None,
        Card(
            uuid="MIG-two", name="NVIDIA A100 MIG 2g.20gb", total=20 * GIB, free=round(19.6 * GIB)
        ),
    ]
    return Card(
        uuid="GPU-a100",
        name="NVIDIA A100",
        total=80 * GIB,
        free=70 * GIB,
        capability=(8, 0),
        mig=instances,
    )


def unified_card() -> Card:
    """A GPU without memory of its own, such as GB10."""
    return Card(
        name="NVIDIA GB10",
        capability=(12, 1),
        memory_error=NVMLError_NotSupported("Not Supported"),
    )
