"""The probe against faked drivers: what is missing is None or a note, never a crash."""

import os
import sys
from pathlib import Path

import pytest

from advisor.machine import probe as probe_module
from advisor.machine.gpu import Machine
from advisor.machine.probe import _other_vendors, probe
from profiles.environment import usable_cores
from tests.advisor import fake_nvml
from tests.advisor.fake_nvml import GIB, Card, install


def _notes(machine: Machine) -> str:
    return "\n".join(str(note) for note in machine.notes)


def test_a_missing_module_is_an_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = probe({})
    assert machine.gpus == ()
    assert "pip install nvidia-ml-py" in _notes(machine)
    assert machine.host_total_bytes >= machine.host_available_bytes > 0
    assert machine.cpu_count == usable_cores()  # as many as a run takes threads


def test_a_missing_driver_is_an_answer(monkeypatch):
    error = fake_nvml.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    install(monkeypatch, init_error=error)
    machine = probe({})
    assert machine.gpus == () and machine.driver_version is None
    assert "NVML Shared Library Not Found" in _notes(machine)


def test_no_gpu(monkeypatch):
    fake = install(monkeypatch)
    machine = probe({})
    assert machine.gpus == () and machine.notes == ()
    assert (machine.driver_version, machine.cuda_driver_version) == ("580.95.05", "13.0")
    assert fake.open == 0, "NVML must be shut down again"


def test_one_gpu_with_memory_v2(monkeypatch):
    install(monkeypatch, Card(name=b"NVIDIA GeForce RTX 4060", display=1))
    (gpu,) = probe({}).gpus
    assert gpu.name == "NVIDIA GeForce RTX 4060"
    assert (gpu.total_bytes, gpu.free_bytes) == (8 * GIB, round(7.8 * GIB))
    assert gpu.reserved_bytes == GIB // 4
    assert gpu.compute_capability == (8, 9) and gpu.bf16 is True
    assert gpu.display_active is True
    assert (gpu.other_processes, gpu.other_process_bytes) == (0, 0)
    assert gpu.mig_parent is None and gpu.lost is None


def test_what_else_a_card_says_of_itself(monkeypatch):
    install(monkeypatch, Card(), Card(ecc=[1, 1], pcie=(5, 8), driver_model=[0, 0]))
    plain, other = probe({}).gpus
    assert (plain.ecc, plain.pcie, plain.wddm) == (None, "4.0 x16", None)
    assert (other.ecc, other.pcie, other.wddm) == (True, "5.0 x8", True)


def test_other_makers_gpus_are_named_with_what_works_there(tmp_path):
    assert _other_vendors("linux", tmp_path, "x86_64") == []
    for number, vendor in enumerate(("0x8086", "0x1002")):
        device = tmp_path / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
    (amd,) = _other_vendors("linux", tmp_path, "x86_64")
    assert amd.where == "AMD GPU" and "ROCm" in amd.what and "--gpu" in amd.fix
    (apple,) = _other_vendors("darwin", tmp_path / "none", "arm64")
    assert apple.where == "Apple GPU"


def test_an_old_driver_without_memory_v2(monkeypatch):
    install(monkeypatch, Card(memory_v2=False))
    (gpu,) = probe({}).gpus
    assert gpu.free_bytes == round(7.8 * GIB)
    assert gpu.used_bytes == 8 * GIB - round(7.8 * GIB)
    assert gpu.reserved_bytes is None


@pytest.mark.parametrize("when", ["handle_error", "memory_error"])
def test_a_lost_gpu_is_listed_and_the_others_are_read(monkeypatch, when):
    lost = Card(**{when: fake_nvml.NVMLError_GpuIsLost("GPU is lost")})
    install(monkeypatch, Card(uuid="GPU-a"), lost, Card(uuid="GPU-c"))
    machine = probe({})
    assert [gpu.uuid for gpu in machine.gpus] == ["GPU-a", None, "GPU-c"]
    assert [gpu.lost for gpu in machine.gpus] == [None, "GPU is lost", None]
    assert "gpu 1: does not answer" in _notes(machine)


def test_each_mig_instance_is_a_gpu(monkeypatch):
    install(monkeypatch, fake_nvml.mig_card())
    one, two = probe({}).gpus
    assert (one.uuid, one.free_bytes) == ("MIG-one", round(9.6 * GIB))
    assert (two.uuid, two.free_bytes) == ("MIG-two", round(19.6 * GIB))
    assert one.mig_parent == two.mig_parent == "GPU-a100"
    assert one.compute_capability == (8, 0), "taken from the card where the instance is silent"
    assert two.compute_capability == (8, 9)
    assert one.other_processes is None


def test_mig_without_an_instance_leaves_no_gpu(monkeypatch):
    install(monkeypatch, Card(mig=[None, None]))
    machine = probe({})
    assert machine.gpus == () and "MIG is on, but no instance" in _notes(machine)


def test_unified_memory_is_unknown_and_said_to_be_shared(monkeypatch):
    install(monkeypatch, fake_nvml.unified_card())
    machine = probe({})
    (gpu,) = machine.gpus
    assert gpu.total_bytes is None and gpu.free_bytes is None and gpu.unified_memory
    assert "shares the host's" in _notes(machine)


def test_an_unknown_answer_about_memory_stays_unknown(monkeypatch):
    error = fake_nvml.NVMLError_Unknown("Unknown Error")
    install(monkeypatch, Card(memory_error=error))
    machine = probe({})
    assert machine.gpus[0].free_bytes is None and not machine.gpus[0].unified_memory
    assert "--vram 8GiB" in _notes(machine)


def test_other_processes_without_this_one_and_counted_once(monkeypatch):
    compute = {os.getpid(): GIB, 10: 2 * GIB}
    install(monkeypatch, Card(compute=compute, graphics={10: 2 * GIB, 11: GIB}))
    (gpu,) = probe({}).gpus
    assert (gpu.other_processes, gpu.other_process_bytes) == (2, 3 * GIB)


def test_wddm_gives_no_bytes_per_process(monkeypatch):
    install(monkeypatch, Card(compute={10: None, 11: GIB}))
    (gpu,) = probe({}).gpus
    assert (gpu.other_processes, gpu.other_process_bytes) == (2, None)


def test_a_mismatched_library_leaves_processes_unknown(monkeypatch):
    install(monkeypatch, Card(compute=fake_nvml.NVMLLibraryMismatchError("mismatch")))
    (gpu,) = probe({}).gpus
    assert gpu.other_processes is None and gpu.free_bytes is not None


def _three(monkeypatch):
    install(monkeypatch, Card(uuid="GPU-aa1"), Card(uuid="GPU-aa2"), Card(uuid="GPU-bb3"))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aa1", "GPU-aa2", "GPU-bb3"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-bb3", "GPU-aa1"]),
        ("GPU-bb", ["GPU-bb3"]),
        ("GPU-bb3,GPU-aa1", ["GPU-bb3", "GPU-aa1"]),
        ("GPU-aa", []),  # two cards begin so
        ("0,-1,1", ["GPU-aa1"]),
        ("0,7,1", ["GPU-aa1"]),
        ("1, 2", ["GPU-aa2", "GPU-bb3"]),
        ("1,1", []),
        ("nonsense", []),
    ],
)
def test_cuda_visible_devices(monkeypatch, visible, uuids):
    _three(monkeypatch)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gpu.uuid for gpu in probe(environ).gpus] == uuids


def test_indices_carry_a_note_about_their_order(monkeypatch):
    _three(monkeypatch)
    order = "indices were read in PCI order"
    assert order in _notes(probe({"CUDA_VISIBLE_DEVICES": "1"}))
    sure = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert order not in _notes(probe(sure))
    assert order not in _notes(probe({"CUDA_VISIBLE_DEVICES": "GPU-aa1"}))


def test_hidden_gpus_are_mentioned(monkeypatch):
    _three(monkeypatch)
    assert "hides every GPU" in _notes(probe({"CUDA_VISIBLE_DEVICES": ""}))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [("MIG-two", ["MIG-two"]), ("0", ["MIG-one"]), ("GPU-a100", ["MIG-one"]), ("MIG-", [])],
)
def test_cuda_visible_devices_with_mig(monkeypatch, visible, uuids):
    install(monkeypatch, fake_nvml.mig_card())
    machine = probe({"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.uuid for gpu in machine.gpus] == uuids


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("linux", "5.15.167.4-microsoft-standard-WSL2", "wsl"),
        ("linux", "6.8.0-45-generic", "linux"),
        ("win32", "10", "windows"),
        ("darwin", "24.0.0", "darwin"),
    ],
)
def test_platform(monkeypatch, system, release, expected):
    install(monkeypatch)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(probe_module.platform_module, "release", lambda: release)
    assert probe({}).platform == expected


def test_the_machine_survives_json(monkeypatch):
    install(monkeypatch, Card(), fake_nvml.lost_card())
    machine = probe({})
    assert Machine.model_validate_json(machine.model_dump_json()) == machine


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_where_it_is_less(version: int, tmp_path: Path) -> None:
    from advisor.machine.probe import _host_memory

    total, available = _host_memory(tmp_path)  # no such files: the machine's own
    assert total is not None and available is not None and available <= total
    names = {1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
             2: ("memory.max", "memory.current")}[version]  # fmt: skip
    (tmp_path / "memory").mkdir(exist_ok=True)
    (tmp_path / names[0]).write_text(f"{2**30}\n")
    (tmp_path / names[1]).write_text(f"{2**28}\n")
    assert _host_memory(tmp_path) == (2**30, 2**30 - 2**28)
    (tmp_path / names[0]).write_text("max\n")
    assert _host_memory(tmp_path)[0] == total
