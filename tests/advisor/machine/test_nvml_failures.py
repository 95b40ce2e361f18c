"""Each question to NVML failing in each way costs that fact alone, and promises no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from advisor.machine.budget import budget_of
from advisor.machine.gpu import Machine
from advisor.machine.probe import probe
from tests.advisor import fake_nvml
from tests.advisor.fake_nvml import GIB, Card, install

# What is lost with each function; the memory call has cases of its own below.
FACTS = {
    "nvmlSystemGetDriverVersion": {"driver_version"},
    "nvmlSystemGetCudaDriverVersion": {"cuda_driver_version"},
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetUUID": {"uuid"},
    "nvmlDeviceGetCudaComputeCapability": set[str](),  # the name tells it
    "nvmlDeviceGetDisplayActive": {"display_active"},
    "nvmlDeviceGetComputeRunningProcesses": {"other_processes", "other_process_bytes"},
    "nvmlDeviceGetGraphicsRunningProcesses": {"other_processes", "other_process_bytes"},
    "nvmlDeviceGetEccMode": {"ecc"},
    "nvmlDeviceGetMaxPcieLinkGeneration": {"pcie"},
    "nvmlDeviceGetMaxPcieLinkWidth": {"pcie"},
    "nvmlDeviceGetDriverModel": {"wddm"},
    "nvmlDeviceGetMigMode": set[str](),
    "nvmlDeviceGetMemoryInfo": {"total_bytes", "free_bytes", "used_bytes", "reserved_bytes"},
    "nvmlDeviceGetMaxMigDeviceCount": set[str](),
    "nvmlShutdown": set[str](),
}
GARBLED = UnicodeDecodeError("utf-8", b"\xf8\x11", 0, 1, "invalid start byte")
WAYS: list[Any] = [
    GARBLED, TypeError("version"), AttributeError("missing"), OSError("library"), KeyError(1),
    fake_nvml.NVMLError_Unknown("Unknown Error"), fake_nvml.NVMLError_NotSupported("no"),
    fake_nvml.NVMLError_FunctionNotFound("no"), fake_nvml.NVMLLibraryMismatchError("no"),
    None, -1, b"\xf8\x11", "\ufffd\x00", [], [None, None], 2**70, SimpleNamespace(),
]  # fmt: skip
CARD = {"name": "NVIDIA GeForce RTX 3060", "total": 12 * GIB, "free": 11 * GIB,
        "capability": (8, 6), "ecc": [0, 0], "driver_model": [0, 0]}  # fmt: skip


def _break(fake: fake_nvml.FakeNvml, function: str, way: Any) -> None:
    def answer(*_: Any, **__: Any) -> Any:
        if isinstance(way, Exception):
            raise way
        return way

    setattr(fake, function, answer)


def _facts(machine: Machine) -> dict[str, Any]:
    machine_facts = {"driver_version", "cuda_driver_version"}
    return machine.gpus[0].model_dump() | machine.model_dump(include=machine_facts)


@pytest.mark.parametrize("function", FACTS)
@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_a_failing_question_costs_its_own_fact(
    monkeypatch: pytest.MonkeyPatch, function: str, way: Any
) -> None:
    fake = install(monkeypatch, Card(**CARD))
    whole = probe({})
    _break(fake, function, way)
    machine = probe({})
    before, after = _facts(whole), _facts(machine)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= FACTS[function]
    assert not machine.gpus[0].unified_memory
    true, found = (budget_of(m.gpus[0], whole) for m in (whole, machine))
    assert true is not None
    assert found is None or found.usable.bytes <= true.usable.bytes


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount",
                                      "nvmlDeviceGetHandleByIndex"])  # fmt: skip
@pytest.mark.parametrize("way", WAYS[:9], ids=repr)
def test_without_a_card_nothing_is_raised_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, function: str, way: Exception
) -> None:
    _break(install(monkeypatch, Card(**CARD)), function, way)
    machine = probe({})
    assert all(gpu.lost for gpu in machine.gpus) and machine.notes


@pytest.mark.parametrize("way", [way for way in WAYS if way != []], ids=repr)
def test_version_1_tells_the_memory_where_version_2_does_not(
    monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    fake = install(monkeypatch, Card(**CARD))
    first = fake.nvmlDeviceGetMemoryInfo

    def answer(card: Card, version: int | None = None) -> Any:
        if version is None:
            return first(card)
        if isinstance(way, Exception):
            raise way
        return way

    monkeypatch.setattr(fake, "nvmlDeviceGetMemoryInfo", answer)
    (gpu,) = probe({}).gpus
    assert (gpu.total_bytes, gpu.free_bytes) == (12 * GIB, 11 * GIB)
    assert not gpu.unified_memory


@pytest.mark.parametrize(("total", "free", "used"), [(0, 0, 0), (GIB, 0, 0), (GIB, 2 * GIB, 0),
                                                     (-1, -1, -1)])  # fmt: skip
def test_success_with_nonsense_is_no_size(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, used: int
) -> None:
    memory = SimpleNamespace(total=total, free=free, used=used, reserved=0)
    _break(install(monkeypatch, Card(**CARD)), "nvmlDeviceGetMemoryInfo", memory)
    machine = probe({})
    assert machine.gpus[0].free_bytes is None
    assert "--vram" in "".join(map(str, machine.notes))


@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_a_card_that_hides_its_mode_is_not_taken_whole(
    monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    fake = install(monkeypatch, fake_nvml.mig_card())
    _break(fake, "nvmlDeviceGetMigMode", way)
    assert [gpu.uuid for gpu in probe({}).gpus] == ["MIG-one", "MIG-two"]
