"""Several processes: started by lisa-train itself, ended together, and with the losses of one."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import HashStore

from tests.conftest import PHOTOS, tiny_plan
from tests.group import together
from trainer.data.formats.reasonseg import read_split
from trainer.parallel import ranks
from trainer.parallel.launch import (
    LAUNCHER,
    SHUTDOWN_SECONDS,
    is_launched,
    is_left_behind,
    is_main,
    leave_group,
    must_start_processes,
    start_processes,
    without_leftovers,
)
from trainer.reporter import Reporter
from trainer.run.run import Run
from trainer.run.started import Keeping

QUIET = Reporter(lambda text: None, lambda what, done, total: None)
START = (
    "import sys; from trainer.parallel.launch import start_processes; "
    "sys.exit(start_processes(2, ['-c', {!r}]))"
)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def run_or_show_stacks(command: list[str], seconds: int) -> tuple[int, str]:
    """Exit code and stderr; of a group that hangs, where each process stood, and none is left."""
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env=environment)  # fmt: skip
    try:
        said = process.communicate(timeout=seconds)[1]
        return process.returncode, said
    except subprocess.TimeoutExpired:
        group = psutil.Process(process.pid).children(recursive=True)
        for child in reversed(group):
            child.send_signal(signal.SIGABRT)  # faulthandler writes the stack to stderr
        process.kill()
        return -1, f"no end after {seconds} s\n{process.communicate()[1]}"


def under_accelerate(how: str, log: Path, *options: str) -> int:
    """lisa-train in two processes: `accelerate launch` starts one with --cpu, else both."""
    accelerate, ours = (
        str(Path(sys.executable).with_name(name)) for name in ("accelerate", "lisa-train")
    )
    command = [accelerate, "launch", how, "--num_processes", "2", "--no_python", ours, *options]
    code, said = run_or_show_stacks(command, seconds=150)
    log.write_text(said)
    return code


@pytest.mark.launcher
@pytest.mark.parametrize(("questions", "how"), [(1, "--cpu"), (2, "--multi_gpu")])
def test_two_processes_of_a_launcher_give_the_losses_of_one(
    questions: int, how: str, tmp_path: Path
) -> None:
    """Rows of two questions too, of which one process may have more than the other."""
    plan = tiny_plan(effective_batch=4, questions_per_picture=questions, max_val_samples=2)
    (tmp_path / "plan.json").write_text(plan.to_json())
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    one.mkdir()
    train, val = read_split(PHOTOS, "train"), read_split(PHOTOS, "val", 2)
    Run(plan, train, val, one, tmp_path / "cache", QUIET).train()
    code = under_accelerate(
        how, log, "--plan", str(tmp_path / "plan.json"), "--set", "processes=2",
        "--data_dir", str(PHOTOS), "--output_dir", str(two), "--cache_dir", str(tmp_path / "cache"),
    )  # fmt: skip
    said = log.read_text()
    assert code == 0, said
    batch = ("2 × 1 × 2 processes", "4 questions, up to 2 a picture, 1 × 1 × 2 processes")
    assert f"batch {batch[questions - 1]}, " in said
    # One process speaks for both.
    assert said.count("before training: gIoU") == 1
    assert len(losses(two)) == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_who_starts_the_processes() -> None:
    two = tiny_plan(processes=2, effective_batch=4, accumulation=1)
    assert must_start_processes(two, {}) and not must_start_processes(tiny_plan(), {})
    # accelerate's simple launcher exports an address, but no rank: nothing was started
    assert must_start_processes(two, {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"})
    assert not must_start_processes(two, {"RANK": "1", "WORLD_SIZE": "2"})
    assert is_main({}) and is_main({"RANK": "0"}) and not is_main({"RANK": "1"})


LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500"}  # fmt: skip


@pytest.mark.parametrize("missing", LAUNCHED)
def test_a_launchers_variables_count_only_together(missing: str) -> None:
    assert is_launched(LAUNCHED) and without_leftovers(dict(LAUNCHED)) == []
    left = {name: value for name, value in LAUNCHED.items() if name != missing}
    said = without_leftovers(left)
    assert said and not set(left) & {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    assert is_main(left)


@pytest.mark.parametrize("wrong", [
    {"RANK": "abc"}, {"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "1.5"},
    {"MASTER_PORT": "0"}, {"MASTER_ADDR": ""}, {"RANK": "0"},
])  # fmt: skip
def test_a_launchers_variables_count_only_when_sane(wrong: dict[str, str]) -> None:
    assert not is_launched(LAUNCHED | wrong)


def test_a_leftover_rank_is_reported_and_the_command_speaks() -> None:
    command = [sys.executable, "-P", "-m", "trainer.cli", "--help"]
    done = subprocess.run(command, env=os.environ | {"RANK": "abc"}, capture_output=True, text=True)
    assert done.returncode == 0 and "--data-dir" in done.stdout
    assert "RANK=abc" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("importing", [False, True])
def test_workers_end_with_a_killed_launcher(importing: bool, tmp_path: Path) -> None:
    """SIGKILL leaves a launcher no time to end them; they may not even have asked for their end."""
    ready = "open('ready' + os.environ['RANK'], 'w').close(); "
    ask = (
        "from trainer.parallel.launch import end_with_parent as e, own_launcher as o; "
        "e(parent=o(os.environ)); "
    )
    late = "p = os.getppid(); " + ready + "\nwhile os.getppid() == p: time.sleep(0.01)\n"
    script = (late + ask if importing else ask + ready) + "time.sleep(60)"
    parent = start(script, tmp_path)
    started = pids(tmp_path)
    while len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30  # half of the workers' sleep; importing takes its time
    while not all_ended(started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all_ended(started)


@pytest.mark.parametrize("module", ["trainer.rehearse.__main__", "trainer.cli.model_process"])
def test_what_holds_a_card_for_another_process_ends_with_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed lisa-advise or server would leave its rehearsal or its model there."""

    def asked() -> None:
        raise Asked

    class Asked(Exception):
        pass

    monkeypatch.setattr("trainer.parallel.launch.end_with_parent", asked)
    with pytest.raises(Asked):
        runpy.run_module(module, run_name="__main__")


def test_whoever_waits_for_a_launch_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole set of variables may be left over; torchrun waits before it starts a process."""
    told: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(ranks, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(ranks, "tell", told.put)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with ranks._waiting("RANK=0 WORLD_SIZE=2"):
        assert not any(isinstance(one, threading.Timer) for one in threading.enumerate())
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with ranks._waiting("RANK=0 WORLD_SIZE=2"):
        said = told.get(timeout=30)
    assert "RANK=0 WORLD_SIZE=2" in said and "unset RANK" in said


def test_rank_0_leaves_when_the_others_have_heard_that_all_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is in its process; nobody waits for a time."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # only in a main thread
    monkeypatch.setattr(ranks, "SLOWEST_LOOK", 60.0)  # rank 0 waits for twice that
    store = HashStore()
    first, second = (ranks.Ranks(rank, 2, store=store) for rank in range(2))
    leaving = threading.Thread(target=first.end_together, daemon=True)
    leaving.start()
    second.say("end", "")
    second.hear("end")
    leaving.join(0.05)
    assert leaving.is_alive()
    second.end_together()
    leaving.join(50)
    assert not leaving.is_alive()


LEFT = """
import os, sys, time
while os.getppid() == int(sys.argv[1]): time.sleep(0.01)
from trainer.cli import train
train.app = lambda **_: open("trained", "w").close()
train.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("elastic", [True, False])
def test_a_process_whose_torchrun_ended_while_it_imported_ends_too(
    elastic: bool, tmp_path: Path
) -> None:
    """Only torch's launchers are known to be Python programs: under another, a shell say, it runs.

    Not seen where a Python program takes over what others leave behind.
    """
    extra = {"TORCHELASTIC_USE_AGENT_STORE": "True"} if elastic else {}
    environment = os.environ | LAUNCHED | extra | {"PYTHONPATH": os.pathsep.join(sys.path)}
    shell = f"'{sys.executable}' -P -c '{LEFT}' $$ & echo $!"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=environment, text=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 60
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "trained").exists() != elastic


def test_who_is_taken_for_a_launcher(tmp_path: Path) -> None:
    elastic = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for words, left in (("/usr/bin/python3.12\0/usr/bin/torchrun", False), ("tini\0--", True),
                        ("/sbin/init", True), ("", False)):  # fmt: skip
        (tmp_path / "cmdline").write_text(words)
        assert is_left_behind(elastic, tmp_path / "cmdline") == left, words
        assert not is_left_behind({}, tmp_path / "cmdline")


# The fields of torch 2.11's LaunchConfig, as `dataclasses.fields` gave them there on 2026-11-29.
OF_2_11 = (
    "min_nodes max_nodes nproc_per_node logs_specs run_id role rdzv_endpoint rdzv_backend "
    "rdzv_configs rdzv_timeout max_restarts monitor_interval start_method log_line_prefix_template "
    "metrics_cfg local_addr event_log_handler numa_options signals_to_handle "
    "duplicate_stdout_filters duplicate_stderr_filters virtual_local_rank"
)


@pytest.mark.parametrize("more", [[], ["shutdown_timeout"]])
def test_the_launcher_of_torch_2_11_is_not_asked_for_what_it_lacks(
    more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `LaunchConfig` has no `shutdown_timeout`; an unknown argument would end the start."""
    from torch.distributed.launcher import api

    fields = [(name, object, None) for name in [*OF_2_11.split(), *more]]
    monkeypatch.setattr(api, "LaunchConfig", dataclasses.make_dataclass("LaunchConfig", fields))
    seen: list[tuple[Any, ...]] = []
    launch = lambda config, command: lambda *rest: seen.append((config, command, *rest))  # noqa: E731
    monkeypatch.setattr(api, "elastic_launch", launch)
    for name in ("OMP_NUM_THREADS", LAUNCHER):
        monkeypatch.setenv(name, "1")  # put back afterwards
    assert start_processes(2, ["-c", "pass"]) == 0
    ((config, *command),) = seen
    assert command == [sys.executable, "-P", "-c", "pass"]
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert getattr(config, "shutdown_timeout", None) == (SHUTDOWN_SECONDS if more else None)


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    """Two processes that write their ids to `folder` and then run `script`."""
    path = os.pathsep.join([os.getcwd(), *sys.path])
    head = "import os, sys, time; open(os.environ['RANK'], 'w').write(str(os.getpid())); "
    return subprocess.Popen(
        [sys.executable, "-c", START.format(head + script)], cwd=folder,
        env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def pids(folder: Path) -> list[int]:
    files = [folder / "0", folder / "1"]
    deadline = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def all_ended(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.launcher
@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_torchruns_hold_their_run_folder_and_leave_no_process(tmp_path: Path) -> None:
    """A second one names the holder of the folder; killing the first ends its processes.

    The second may start its processes on another port, so it is refused for the folder alone.
    """
    plan = tiny_plan(processes=2, micro_batch=1, schedule={"epochs": 500})
    (tmp_path / "plan.json").write_text(plan.to_json())
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "trainer.cli",
        "--plan", str(tmp_path / "plan.json"), "--data-dir", str(PHOTOS),
        "--output-dir", str(folder), "--cache-dir", str(tmp_path / "cache"),
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
    records, until = folder / "metrics.jsonl", time.monotonic() + 90
    try:
        while not records.exists() or '"loss"' not in records.read_text():
            assert first.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
        trained = psutil.Process(first.pid).children(recursive=True)
        second = subprocess.run(command, capture_output=True, text=True, timeout=90)
    finally:
        first.kill()
        first.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, trained)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [process for process in trained if is_alive(process)]
    for process in left:
        process.kill()
    assert len(trained) >= 2 and not left
    assert "exitcode  : 2 " in second.stderr
    holders = re.findall(r"process (\d+)", second.stderr)
    assert holders and int(holders[0]) in [process.pid for process in trained], second.stderr
    assert "--resume" not in second.stderr  # a run that goes on cannot be gone on with


ACCELERATE = '''
import subprocess, sys
subprocess.run([sys.executable, "-c", """import os, time
from pathlib import Path
from trainer.cli import train
parent = os.getppid()

def app(**_):
    Path("ready").touch()
    while os.getppid() == parent:
        time.sleep(0.01)
    time.sleep(0.05)  # what ends it comes with its parent's end
    Path("alone").touch()

train.app = app
train.main()"""])
'''


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize(("name", "along"), [("accelerate", True), ("other", False)])
def test_a_training_ends_with_the_accelerate_launch_that_waits_for_it(
    name: str, along: bool, tmp_path: Path
) -> None:
    """Which starts one process without a rank; any other parent may go, as nohup's does."""
    (tmp_path / name).write_text(ACCELERATE)
    path = os.pathsep.join([os.getcwd(), *sys.path])
    parent = subprocess.Popen([sys.executable, tmp_path / name], cwd=tmp_path,
                              env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child) and (tmp_path / "alone").exists() != along


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended may wait to be reaped by what took it over."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_a_failing_process_ends_the_other_and_gives_its_exit_code(tmp_path: Path) -> None:
    parent = start("time.sleep(60) if os.environ['RANK'] == '0' else sys.exit(2)", tmp_path)
    started = pids(tmp_path)
    assert parent.wait(timeout=50) == 2
    assert all_ended(started)


def trained_and_resumed(base: Path, cache: Path) -> None:
    """A run that keeps every checkpoint, and another that goes on from its first."""
    one, two = base / "one", base / "two"
    shape = {"processes": 3, "micro_batch": 1, "effective_batch": 3, "workers": 0}
    plan = tiny_plan(**shape, cached_encoders=["mask", "vision"])
    data = read_split(PHOTOS, "train")[:6], read_split(PHOTOS, "val", 1)

    def run(folder: Path) -> Run:
        folder.mkdir(exist_ok=True)
        return Run(plan, *data, folder, cache, QUIET, Keeping(steps=1, checkpoints=9))

    whole = run(one)
    whole.accelerator.end_training = lambda: None  # type: ignore[method-assign]  # the group's end
    whole.train()
    if is_main():
        kept = {json.loads((f / "facts.json").read_text())["step"]: f
                for f in sorted(one.glob("last*"), reverse=True)}  # fmt: skip
        shutil.copytree(kept[1], base / "first")
        shutil.copytree(one, two)
    whole.accelerator.wait_for_everyone()
    broken = run(two)
    broken.train(base / "first")
    leave_group(0)


@pytest.mark.slow
def test_three_processes_that_are_resumed_end_as_those_that_were_not(
    cache: Path, tmp_path: Path
) -> None:
    """Bit for bit: the second step's gradients of three processes are added in the same order."""
    log, work = tmp_path / "log", partial(trained_and_resumed, tmp_path, cache)
    assert together(3, work, log) == [0, 0, 0], log.read_text()
    one, two = (tmp_path / name for name in ("one", "two"))
    assert losses(two) == losses(one) and len(losses(one)) == 2
    trained = [(folder / "last" / "trained.safetensors").read_bytes() for folder in (one, two)]
    assert trained[0] == trained[1] != (tmp_path / "first" / "trained.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    parent = start("time.sleep(60)", tmp_path)
    started = pids(tmp_path)
    assert not all_ended(started)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=50) == 130
    assert all_ended(started)


AGAIN = """
import os, sys, time, torch
from tests.conftest import tiny_plan
from trainer.parallel.accelerator import make_accelerator
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1" and os.environ["RANK"] == "0":
    time.sleep(5)  # the other one looks for the address of this one first
accelerator = make_accelerator(tiny_plan(processes=2, micro_batch=1, accumulation=1), None)
assert accelerator.reduce(torch.ones(1)).item() == 2
open("attempt" + os.environ["TORCHELASTIC_RESTART_COUNT"] + os.environ["RANK"], "w").close()
os._exit(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
"""


@pytest.mark.launcher
def test_a_group_that_torchrun_starts_again_does_not_look_for_the_one_before(
    tmp_path: Path,
) -> None:
    """torchrun's store still has the addresses of the processes that have ended."""
    (tmp_path / "again.py").write_text(AGAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               "--local-addr", "127.0.0.1", "again.py"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "attempt10").exists() and (tmp_path / "attempt11").exists()
