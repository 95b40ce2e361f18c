"""lisa-advise doctor: which parts of this machine are ready to train, and how to fix the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from advisor.cost.disk import disk_of
from advisor.cost.rooms import rooms
from advisor.machine.gpu import Machine
from advisor.machine.target import pick_gpu
from advisor.machine.torch_builds import older_torch, too_old, wants_older
from advisor.machine.versions import REMEDY, newer_than_rows
from advisor.rehearsal import in_child
from profiles.environment import ALLOCATOR_VARIABLES, python_module
from profiles.files import reason
from profiles.models import DEFAULT_MODELS
from profiles.places import cache_folder, caches_stay
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.sizes import GIB, gib
from profiles.tested import read_table

SELFTEST_SECONDS = 180
HUB = "https://huggingface.co"
HUB_SECONDS = 3
NO_CUDA = "no CUDA device"


class Check(Frozen):
    """One thing that was checked."""

    name: str
    status: Literal["ok", "note", "fail"] = Field(description="note: works, but not as well")
    found: str
    remedy: str = ""


def examine(
    machine: Machine,
    offline: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    model: str | None = None,
) -> tuple[Check, ...]:
    """Every check on this machine, what fails first; lisa-tiny trains a step in a child process.

    Disks must have room for `model`, by default the one that is advised here. `tell` gets a line
    before each check that takes seconds.
    """
    gpu = pick_gpu(machine)
    device = "cuda" if gpu is not None else "cpu"
    tell(f"a training step of lisa-tiny on {device}, up to a minute ...")
    facts = _selftest(device)
    if not offline:
        tell(f"connecting to the model hub, {HUB_SECONDS} s at most ...")
    checks = [
        *_driver(machine, facts),
        *_libraries(facts),
        *_newer(machine, facts),
        *_abilities(machine, facts),
        *_room(machine, model),
        *([] if offline else _hub()),
        _one_step(device, facts),
    ]
    return tuple(sorted(checks, key=lambda check: check.status != "fail"))


def answer(machine: Machine, checks: Sequence[Check]) -> str:
    """Whether this machine is ready to train, in one sentence."""
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        return f"not ready to train: {', '.join(failed)}"
    if pick_gpu(machine) is None:
        return "ready to train lisa-tiny alone: every other model needs a GPU"
    return "ready to train; lisa-advise says which model fits this card"


def report(machine: Machine, checks: tuple[Check, ...]) -> str:
    """A block to paste into an issue: versions, machine and checks; no path, no user name."""
    lines = [f"{check.status:4} {check.name}: {check.found}" for check in checks]
    gpus = [f"gpu: {gpu.name}, {gib(gpu.total_bytes or 0)}, capability {gpu.compute_capability}"
            for gpu in machine.gpus]  # fmt: skip
    head = [f"platform: {machine.platform}, python {sys.version.split()[0]}",
            f"host memory: {gib(machine.host_total_bytes or 0)}", *gpus]  # fmt: skip
    return "\n".join(["```", *head, *lines, "```"])


def _selftest(device: str) -> dict[str, Any]:
    command = python_module("trainer.rehearse.selftest", device)
    try:
        done = in_child(command, SELFTEST_SECONDS, {})
    except subprocess.TimeoutExpired:
        return {"error": f"did not end in {SELFTEST_SECONDS} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    except ValueError:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        return {"error": f"ended with {ended}: {last}"}


def _driver(machine: Machine, facts: dict[str, Any]) -> Iterator[Check]:
    gpu = pick_gpu(machine)
    if gpu is None:
        found, fix = "no GPU is visible", ""
        if machine.notes:
            note = machine.notes[0]
            found, fix = str(note).partition("\n")[0], f"{note.fix}; "
        remedy = f"{fix}lisa-tiny trains on the CPU; every other model needs a GPU"
        yield Check(name="driver", status="note", found=found, remedy=remedy)
        built = facts.get("torch_cuda")
        kind = f"is built for CUDA {built}" if built else "is a CPU build"
        yield Check(name="torch's CUDA", status="note", found=f"{NO_CUDA}: torch {kind}")
        return
    found = f"{machine.driver_version}, serves CUDA {machine.cuda_driver_version}; {gpu.name}"
    yield Check(name="driver", status="ok", found=found)
    built = facts.get("torch_cuda")
    if "versions" not in facts:
        return
    if built is None:
        remedy = "pip uninstall torch, and install torch for CUDA from the index that "
        remedy += f"pytorch.org/get-started names for CUDA {machine.cuda_driver_version}"
        if machine.platform == "windows":
            remedy += ": there plain pip gives a CPU build"
        yield Check(name="torch's CUDA", status="fail", found="torch is a CPU build", remedy=remedy)
        return
    served = _number(machine.cuda_driver_version)
    late = served is not None and (_number(built) or 0) // 1 > served // 1
    found = f"torch is built for CUDA {built}"
    remedy = "install a newer NVIDIA driver, or torch for an older CUDA" if late else ""
    yield Check(name="torch's CUDA", status="fail" if late else "ok", found=found, remedy=remedy)
    if not facts["cuda_available"]:
        found = "torch sees no GPU, though the driver does"
        remedy = "reinstall torch for this CUDA; check CUDA_VISIBLE_DEVICES"
        yield Check(name="torch sees the GPU", status="fail", found=found, remedy=remedy)
    elif gpu.compute_capability and not serves(facts["architectures"], gpu.compute_capability):
        version = "{}.{}".format(*gpu.compute_capability)
        found = f"this build has none for {gpu.name}, compute capability {version}: it is for "
        found += ", ".join(facts["architectures"])
        remedy = "install a newer torch"
        if wants_older(gpu.compute_capability):
            old = too_old(gpu)
            remedy = old.fix if old else older_torch()
        yield Check(name="torch's kernels", status="fail", found=found, remedy=remedy)


def serves(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether torch's build (`torch.cuda.get_arch_list`) has kernels for a compute capability.

    `sm_86` serves cards of the same major number from 8.6 on, `compute_90` (PTX) all from 9.0 on
    (CUDA C++ Programming Guide, binary and PTX compatibility).
    """
    for name in architectures:
        kind, _, digits = name.rstrip("af").partition("_")
        if not digits.isdecimal():
            continue
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _libraries(facts: dict[str, Any]) -> Iterator[Check]:
    versions = facts.get("versions")
    if versions is None:
        remedy = "install lisa-preflight again, into a fresh virtual environment"
        found = facts.get("error", "nothing")
        yield Check(name="libraries", status="fail", found=found, remedy=remedy)
        return
    found = ", ".join(f"{name} {number}" for name, number in versions.items())
    yield Check(name="libraries", status="ok", found=found)


def _newer(machine: Machine, facts: dict[str, Any]) -> Iterator[Check]:
    """Whether a library is newer than all that was measured; without a GPU nothing was."""
    found = newer_than_rows(facts.get("versions", {}), read_table().rows)
    if found and pick_gpu(machine) is not None:
        found = f"newer than in any tested row: {found}"
        yield Check(name="versions", status="note", found=found, remedy=REMEDY)


def _abilities(machine: Machine, facts: dict[str, Any]) -> Iterator[Check]:
    if "versions" not in facts:
        return
    if pick_gpu(machine) is None:
        yield Check(name="bf16", status="note", found=f"{NO_CUDA}: lisa-tiny computes in fp32")
        found = facts["compiler"] or "Triton and a C compiler are there"
        yield Check(name="compiled layers", status="note", found=f"{NO_CUDA}: {found}")
        return
    bf16 = bool(facts["bf16"])
    found = "computes in bf16" if bf16 else "no bf16: plans compute in fp16 with a gradient scaler"
    yield Check(name="bf16", status="ok" if bf16 else "note", found=found)
    yield _segments(machine)
    missing = facts["compiler"]
    yield Check(name="compiled layers", status="note" if missing else "ok",
                found=missing or "Triton and a C compiler are there",
                remedy="apt install gcc, or --set compile=false" if missing else "")  # fmt: skip


def _segments(machine: Machine) -> Check:
    """Whether expandable segments work here: tried, as drivers and virtual GPUs differ."""
    if machine.platform == "windows":
        found, ok = "not on Windows: the pool takes a little more", False
    else:
        found, ok = _segments_tried()
    remedy = "" if ok or machine.platform == "windows" else "--set allocator="
    status: Literal["ok", "note"] = "ok" if ok else "note"
    return Check(name="expandable segments", status=status, found=found, remedy=remedy)


def _segments_tried() -> tuple[str, bool]:
    """The outcome of an allocation with them, in a child process, because it may crash."""
    code = "import torch; torch.empty(1 << 26, dtype=torch.uint8, device='cuda').fill_(1)"
    code += "; torch.cuda.synchronize()"
    setting = "expandable_segments:True"
    environment = dict.fromkeys(ALLOCATOR_VARIABLES, setting)
    try:
        done = in_child([sys.executable, "-P", "-c", code], SELFTEST_SECONDS, environment)
    except subprocess.TimeoutExpired:
        return f"could not be tried: no answer in {SELFTEST_SECONDS} s", False
    except OSError as error:
        return f"could not be tried: {reason(error)}", False
    if done.returncode == 0 and "not supported" not in done.stderr:
        return "tried: an allocation went well", True
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
    return f"an allocation with them failed: {last[:200]}", False


def _room(machine: Machine, asked: str | None = None) -> Iterator[Check]:
    if not caches_stay():
        found = f"features are cached in {cache_folder()}: the home folder cannot be written"
        yield Check(name="caches", status="note", found=found,
                    remedy="--cache-dir names another disk")  # fmt: skip
    model, other = asked or DEFAULT_MODELS[0], ""
    if not asked and pick_gpu(machine) is None:
        size = disk_of(Plan.parse({"model": model})).total_bytes
        other = f"; {model}, for a machine with a GPU, {gib(size)}"
        model = "tiny"  # what trains on a CPU
    try:
        disks = rooms(disk_of(Plan.parse({"model": model})))
    except OSError as error:
        yield Check(name="disk", status="note", found=f"cannot be asked: {reason(error)}")
        disks = []
    for disk in disks:
        short = disk.needed_bytes > disk.free_bytes
        parts = ", ".join(f"{name} {gib(size)}" for name, size in disk.what.items())
        found = (
            f"{gib(disk.free_bytes)} free; {model} takes {gib(disk.needed_bytes)}: {parts}{other}"
        )
        remedy = "make room, or name other disks: HF_HOME, --cache-dir, --output-dir"
        yield Check(name="disk", status="note" if short else "ok",
                    found=found, remedy=remedy if short else "")  # fmt: skip
    if machine.host_available_bytes is not None:
        found = f"{gib(machine.host_available_bytes)} of {gib(machine.host_total_bytes or 0)} free"
        small = machine.host_available_bytes < 6 * GIB
        remedy = f"close other programs: loading {model} takes some GiB" if small else ""
        status: Literal["ok", "note"] = "note" if small else "ok"
        yield Check(name="host memory", status=status, found=found, remedy=remedy)


def _hub() -> Iterator[Check]:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(HUB, timeout=HUB_SECONDS):
            yield Check(name="model hub", status="ok", found="answers")
    except (urllib.error.URLError, OSError, ValueError):
        remedy = "weights must be in a folder: --weights FOLDER"
        yield Check(name="model hub", status="note", found="does not answer", remedy=remedy)


def _one_step(device: str, facts: dict[str, Any]) -> Check:
    name = f"a training step of lisa-tiny on {device}"
    if "error" in facts:
        remedy = "the message says what broke; lisa-advise doctor --report helps in an issue"
        return Check(name=name, status="fail", found=facts["error"], remedy=remedy)
    return Check(name=name, status="ok", found=f"ran, loss {facts['loss']:.3g}")
