"""lisa-train on two cards under NCCL: as one process, harmed in every way, and gone on with.

pytest -m gpu tests/gpu/test_two_cards.py -s    three minutes; prints the figures

All trainings run at once on both cards, in fp32. Those that run out of memory come first: what
others take of a card meanwhile would be taken for the cause.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PHOTOS, ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
DEVICE = "cuda"
PATIENCE = 240  # seconds for one command: longer is a hang
NOTICED = 10  # seconds by which a process whose neighbour was killed has ended
KILLED_AFTER = 30  # seconds after which torch's launcher kills a process that SIGTERM does not end
LINGERING = 2  # seconds: what libraries start (a tracker of resources, say) ends after the training
SILENCE = 15  # LISA_GROUP_TIMEOUT where a process is stopped
MIDWAY, STEPS = 3, 16
CLOSE = 1e-4  # of losses, relatively
MODULE = ("-m", "trainer.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--max-restarts", "1", *MODULE)  # fmt: skip
PLAN = {
    "model": "tiny", "device": DEVICE, "dtype": "fp32", "quantization": "none",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "qv"}, "mask_loss_resolution": 64,
    "micro_batch": 3, "accumulation": 2, "effective_batch": 6, "workers": 0, "max_val_samples": 2,
    "schedule": {"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 8, "shape": "linear"},
}  # fmt: skip
TWO = PLAN | {"processes": 2, "accumulation": 1}
NAME = "TWO_CARDS"  # variable by which the processes of a training are found


@dataclass
class Training:
    """One training: its folder, its processes, and what was seen of it."""

    place: Path
    plan: dict[str, Any]
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    def start(self, command: tuple[str, ...], *more: str, **variables: str) -> psutil.Popen:
        """Begin it, or resume it once there is a run."""
        self.place.mkdir(exist_ok=True)
        (self.place / "plan.json").write_text(json.dumps(self.plan))
        begin = ["--plan", self.place / "plan.json", "--data-dir", PHOTOS, "--output-dir", self.run,
                 "--cache-dir", self.place.parent / "features", "--save-steps", "1"]  # fmt: skip
        begun = (self.run / "run.json").exists()
        arguments = map(str, ["--resume", self.run] if begun else begin)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "XDG_DATA_HOME": str(self.place), NAME: str(self.place),
               "PYTHONFAULTHANDLER": "1"}  # fmt: skip
        with (self.place / "log").open("ab") as log:
            return psutil.Popen([sys.executable, "-P", *command, *arguments, *more], stdout=log,
                                stderr=log, env=os.environ | own | variables)  # fmt: skip

    def ended(self, launcher: psutil.Popen, since: float | None = None) -> int:
        """Wait for it; its exit code. Notes the seconds `since`, and what is left of it."""
        try:
            code = launcher.wait(PATIENCE)
        except psutil.TimeoutExpired:
            self.show_stacks()
            raise
        if since is not None:
            self.seen["seconds"] = round(time.monotonic() - since, 1)
        lingering, until = self.alive(), time.monotonic() + LINGERING
        self.seen["lingering"] = [described(process) for process in lingering]
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        self.seen["left"] = len(self.alive())
        return int(code)

    def show_stacks(self) -> None:
        """Let its processes write into the log where they hang, and end."""
        alive = self.alive()
        with (self.place / "log").open("a") as log:
            print("hung:", *map(described, alive), sep="\n  ", file=log)
        for process in alive:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGABRT)  # by PYTHONFAULTHANDLER
        psutil.wait_procs(alive, timeout=LINGERING)

    def midway(self, launcher: psutil.Popen) -> float:
        """Wait for some steps; the time."""
        while launcher.poll() is None and len(self.losses()) < MIDWAY:
            time.sleep(0.01)
        return time.monotonic()

    def alive(self) -> list[psutil.Process]:
        """Its processes that have not ended."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get(NAME) == str(self.place)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank: the first of those with its number, as workers come later."""
        found = [one for one in self.alive() if one.environ().get("RANK") == str(number)]
        return min(found, key=lambda one: float(one.create_time()))

    def losses(self) -> list[float]:
        """Of every step so far; the last line may be half written."""
        with suppress(FileNotFoundError):
            lines = (self.run / "metrics.jsonl").read_text().split("\n")[:-1]
            return [row["loss"] for row in map(json.loads, lines) if "loss" in row]
        return []

    def trained(self) -> torch.Tensor:
        """All trained values in one row."""
        tensors = load_file(self.run / "last" / "trained.safetensors")
        return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def described(process: psutil.Process) -> str:
    """What it is, for people; its age in seconds."""
    try:
        age = time.time() - process.create_time()
        command = " ".join(process.cmdline()) or process.name()
        return f"{process.pid} of {process.ppid()}, {process.status()}, {age:.1f} s: {command}"
    except psutil.Error as error:
        return f"{error}"


# What is done with a training; each returns the exit code of the last command.


def left_alone(training: Training, **variables: str) -> int:
    return training.ended(training.start(MODULE, **variables))


def killed(training: Training) -> int:
    """One rank, midway; then resumed by two processes and, in a copy, by one."""
    launcher = training.start(MODULE)
    at = training.midway(launcher)
    training.rank(1).kill()
    training.seen["code"] = training.ended(launcher, at)
    by_one = Training(training.place.with_name("by-one"), training.plan)
    shutil.copytree(training.run, by_one.run)
    launchers = training.start(MODULE), by_one.start(MODULE, "--set", "processes=1")
    training.seen["code by one"] = by_one.ended(launchers[1])
    return training.ended(launchers[0])


def killed_under_torchrun(training: Training) -> int:
    launcher = training.start(TORCHRUN)
    training.midway(launcher)
    training.rank(1).kill()
    return training.ended(launcher)


def starved(training: Training, command: tuple[str, ...]) -> int:
    """Rank 1 runs out of memory in its third step, once."""
    path = os.pathsep.join([str(ROOT / "benchmarks" / "starved"), str(ROOT),
                            os.environ.get("PYTHONPATH", "")])  # fmt: skip
    call = f"trainer.step,accumulate,3,1,{training.place / 'once'}"
    return training.ended(training.start(command, PYTHONPATH=path, STARVED=call))


def silent(training: Training, rank: int) -> int:
    """One rank stops and says nothing; then resumed."""
    launcher = training.start(MODULE, LISA_GROUP_TIMEOUT=str(SILENCE))
    at = training.midway(launcher)
    training.rank(rank).send_signal(signal.SIGSTOP)
    training.seen["code"] = training.ended(launcher, at)
    training.seen["left by it"] = training.seen["left"]
    return training.ended(training.start(MODULE))


def launcher_killed(training: Training) -> int:
    launcher = training.start(MODULE)
    training.midway(launcher)
    launcher.kill()
    at = time.monotonic()
    while training.alive() and time.monotonic() < at + PATIENCE:
        time.sleep(0.02)
    return training.ended(launcher, at)


def host_layers(training: Training) -> int:
    """Notes the anonymous files that each rank maps."""
    launcher = training.start(MODULE)
    training.midway(launcher)
    for rank in (0, 1):
        lines = Path(f"/proc/{training.rank(rank).pid}/maps").read_text().splitlines()
        files = {" ".join(line.split()[3:5]) for line in lines if "/memfd:" in line}
        training.seen[f"files of rank {rank}"] = files
    return training.ended(launcher)


HOST = {"checkpointed_layers": "all", "host_layers": 2, "host_embeddings": True}
SCENES: dict[str, tuple[dict[str, Any], Callable[[Training], int]]] = {
    "out_of_memory": (TWO, partial(starved, command=MODULE)),
    "out_of_memory_under_torchrun": (TWO, partial(starved, command=TORCHRUN)),
    "one": (PLAN, left_alone),
    "two": (TWO, left_alone),
    "killed": (TWO, killed),
    "killed_under_torchrun": (TWO, killed_under_torchrun),
    "silent": (TWO, partial(silent, rank=1)),
    "silent_main": (TWO, partial(silent, rank=0)),
    "launcher_killed": (TWO, launcher_killed),
    "host_layers": (TWO | HOST, host_layers),
}
Ends = Callable[[str], tuple[Training, int]]


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ends]:
    """Starts what the chosen tests ask for; a call waits for one of them."""
    base = tmp_path_factory.mktemp("two-cards")
    asked = {re.sub(r"test_|\W", "", item.name) for item in request.session.items}
    chosen = asked | {"one", "two"}
    trainings = {name: Training(base / name, SCENES[name][0]) for name in SCENES if name in chosen}
    codes: dict[str, Future[int]] = {}
    with ThreadPoolExecutor(len(SCENES)) as pool:
        for name, training in trainings.items():
            codes[name] = pool.submit(SCENES[name][1], training)
            report = training.run / "out-of-memory" / "001" / "shortage.json"
            while name.startswith("out_of") and not (report.exists() or codes[name].done()):
                time.sleep(0.1)

        def end_of(name: str) -> tuple[Training, int]:
            try:
                return trainings[name], codes[name].result()
            except Exception:
                print(f"\n{name}: {trainings[name].seen}\n{trainings[name].log}")
                raise

        yield end_of
    for training in trainings.values():
        for process in training.alive():
            process.kill()


def check(ends: Ends, name: str) -> Training:
    """A training that has gone through all of its steps, with the losses of one process."""
    (training, code), (one, _) = ends(name), ends("one")
    print(f"\n{name}: code {code}, {training.seen}")
    assert code == 0, training.log
    assert len(one.losses()) == STEPS
    off = off_losses(training, one)
    print(f"losses off by {off:.1e}")
    assert len(training.losses()) == STEPS and off < CLOSE
    return training


def off_losses(training: Training, other: Training) -> float:
    pairs = zip(training.losses(), other.losses(), strict=False)
    return max(abs(mine / its - 1) for mine, its in pairs)


def off_weights(training: Training, whole: Training) -> float:
    """Distance of the trained values from those of an undisturbed run, of their norm."""
    values = whole.trained()
    return float((training.trained() - values).norm() / values.norm())


def test_two(ends: Ends) -> None:
    """lisa-train's own launch trains as one process does."""
    two = check(ends, "two")
    assert json.loads((two.run / "plan.json").read_text())["processes"] == 2
    off = off_weights(ends("one")[0], two)
    print(f"weights off by {off:.1e}")
    assert off < CLOSE


def test_killed(ends: Ends) -> None:
    """The group ends and says why; two resume it to the same weights, and one to its losses."""
    training = check(ends, "killed")
    assert training.seen["code"] == 1 and training.seen["left"] == 0
    assert training.seen["seconds"] < NOTICED, training.log
    # Whoever is first: its launcher, or the process that lost it.
    assert "ended by SIGKILL" in training.log or "another process of this run" in training.log
    assert "lisa-train --resume" in training.log
    off = off_weights(training, ends("two")[0])
    by_one = Training(training.place.with_name("by-one"), training.plan)
    print(
        f"weights off by {off:.1e}, resumed by one: losses {off_losses(by_one, ends('one')[0]):.1e}"
    )
    assert off < CLOSE
    assert training.seen["code by one"] == 0 and len(by_one.losses()) == STEPS
    assert off_losses(by_one, ends("one")[0]) < CLOSE


def test_killed_under_torchrun(ends: Ends) -> None:
    """It goes on by itself."""
    training = check(ends, "killed_under_torchrun")
    assert "continuing from" in training.log and training.seen["left"] == 0, training.log
    assert off_weights(training, ends("two")[0]) < CLOSE


@pytest.mark.parametrize("launch", ["", "_under_torchrun"])
def test_out_of_memory(ends: Ends, launch: str) -> None:
    """All end, and the run goes on by itself with a plan that needs less."""
    training = check(ends, f"out_of_memory{launch}")
    assert "out of memory while training, after step 2" in training.log
    print([line for line in training.log.splitlines() if line.startswith("continuing")])
    plan = json.loads((training.run / "plan.json").read_text())
    assert plan["checkpointed_layers"] > 0 or plan["micro_batch"] < TWO["micro_batch"]
    assert training.seen["left"] == 0, training.log


@pytest.mark.parametrize("which", ["", "_main"])
def test_silent(ends: Ends, which: str) -> None:
    """The other waits as long as is allowed, says what to type, and leaves nothing that is wrong.

    torch 2.11's launcher takes half a minute more to end the one that is stopped.
    """
    training = check(ends, f"silent{which}")
    assert training.seen["code"] == 1 and training.seen["left by it"] == 0, training.log
    assert training.seen["seconds"] < SILENCE + KILLED_AFTER + NOTICED, training.log
    assert f"another process of this run did not answer for {SILENCE} s" in training.log
    assert "lisa-train --resume" in training.log
    off = off_weights(training, ends("two")[0])
    print(f"weights off by {off:.1e}; it said:\n{training.log}")
    assert off < CLOSE


def test_launcher_killed(ends: Ends) -> None:
    """Its processes end with it."""
    training, code = ends("launcher_killed")
    print(f"\nlauncher killed: {training.seen}")
    assert code == -signal.SIGKILL and len(training.losses()) < STEPS
    assert training.seen["left"] == 0 and training.seen["seconds"] < 2


def test_host_layers(ends: Ends) -> None:
    """Both ranks map one file, from which each copies to its own card."""
    training = check(ends, "host_layers")
    files = [training.seen[f"files of rank {rank}"] for rank in (0, 1)]
    assert files[0] == files[1] and len(files[0]) == 1
