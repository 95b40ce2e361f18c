"""A launch on several machines without a shared disk: rank 0 decides, the others wait and read.

Each machine here is a folder in which its ranks start; all paths are relative.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from advisor import preflight
from advisor.advice import Advice
from advisor.machine.gpu import Machine
from benchmarks.forked import lisa_train
from profiles.sizes import GIB
from tests.advisor.fake_nvml import Card, FakeNvml
from tests.conftest import PHOTOS, tiny_plan
from tests.group import together
from trainer.cli.ranks import as_launched, launch_settings
from trainer.data.feature_cache import FeatureCache
from trainer.data.formats.reasonseg import read_split
from trainer.model.weights import packaged_folder
from trainer.parallel.accelerator import make_accelerator
from trainer.parallel.launch import leave_group
from trainer.parallel.ranks import Ranks, launched
from trainer.reporter import Reporter
from trainer.run import validation
from trainer.run.feature_caches import share_of
from trainer.run.run import Run

QUIET = Reporter(lambda text: None, lambda what, done, total: None)
PLAN = tiny_plan(
    effective_batch=4, cached_encoders=["vision", "mask"], max_val_samples=2, host_layers=2,
    checkpointed_layers=4,
)  # fmt: skip
HERE = ("--data-dir", "data", "--cache-dir", "cache")
NEW = (*HERE, "--plan", "plan.json", "--output-dir", "run", "--save-steps", "1")

JOINED = "host-b: ranks 2 to 3 of 4; rank 0 on 127.0.0.1 decides, reports and saves\n"


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Two, each with its own data; the first has the plan."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        shutil.copytree(PHOTOS, place / "data")
    (places[0] / "plan.json").write_text(PLAN.to_json())
    return places


def launch(
    machines: list[Path],
    *arguments: str,
    before: Callable[[], object] = lambda: None,
    count: int = 4,
) -> tuple[list[int], list[str]]:
    """Exit codes of the ranks, as many on each machine, and what each machine's first says."""

    def work() -> None:
        machine, rank = divmod(int(os.environ["RANK"]), count // 2)
        place = machines[machine]
        os.chdir(place)
        if rank == 0:
            log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 2)
        socket.gethostname = lambda: f"host-{place.name}"
        before()
        lisa_train(*arguments)()

    codes = together(count, work, machines[0].parent / "rest", machines=2)
    return codes, [(place / "log").read_text() for place in machines]


@pytest.mark.slow
def test_two_machines_train_as_one_process_and_resume(machines: list[Path], tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    train, val = read_split(PHOTOS, "train"), read_split(PHOTOS, "val", 2)
    Run(PLAN, train, val, one, tmp_path / "cache", QUIET).train()
    codes, said = launch(machines, *NEW)
    assert codes == [0] * 4, said
    assert "nodes=2, processes=4" in said[0]
    assert said[1] == JOINED
    assert losses(machines[0] / "run") == pytest.approx(losses(one), rel=1e-4)
    assert evaluations(machines[0] / "run")[0] == evaluations(one)[0]
    # Nothing but the machine's own caches is on the second one's disk, and these are complete.
    assert {path.name for path in machines[1].iterdir()} == {"data", "cache", "log"}
    found = [sorted(p.name for p in place.glob("cache/*/*.safetensors"))
             for place in (*machines, tmp_path)]  # fmt: skip
    assert found[0] == found[1] == found[2] != []

    run, whole = machines[0] / "run", losses(machines[0] / "run")
    for name in ("summary.json", "overlay.png"):
        (run / name).unlink()
    shutil.rmtree(run / "last")  # the one before is a step or an evaluation older
    codes, said = launch(machines, *HERE, "--resume", "run", count=2)  # as many as are there now
    assert codes == [0] * 2, said
    assert "continuing from" in said[0] and "processes: 4 -> 2" in said[0]
    assert len(whole) == 2 and losses(run) == pytest.approx(whole, rel=1e-4)
    assert {path.name for path in machines[1].iterdir()} == {"data", "cache", "log"}
    codes, said = launch(machines, *HERE, "--resume", "run")
    assert codes == [0] * 4 and "is complete" in said[0] and said[1] == JOINED


def test_ranks_share_evaluation_and_caches(tmp_path: Path) -> None:
    """Three ranks: every one does its part, and the results are one process's."""
    train, val = read_split(PHOTOS, "train"), read_split(PHOTOS, "val")
    pictures = {sha256(item.image_path.read_bytes()).hexdigest() for item in [*train, *val]}
    plan = tiny_plan(processes=3, effective_batch=3, micro_batch=1, cached_encoders=["vision"])
    (tmp_path / "run").mkdir()

    def work() -> None:
        said: list[str] = []
        shown: list[str] = []
        reporter = Reporter(said.append, lambda what, *numbers: shown.append(what))
        built, evaluated = counted(FeatureCache, "write"), counted(validation, "predict")
        run = Run(plan, train, val, tmp_path / "run", tmp_path / "cache", reporter)
        every = list(range(len(run.val_set)))
        together = validation.evaluate_together(
            run.model, run.val_set, run.tokenizer, run.accelerator, reporter
        )
        part = "the first of 3 processes"  # beside "built", which counts those of all
        assert set(shown) == {f"clip features, {part}", f"evaluating, {part}"}, shown
        done = [list(map(int, text.split()))
                for text in run.ranks.exchange("done", f"{built[0]} {evaluated[0]}")]  # fmt: skip
        alone = validation.evaluate(
            run.model, run.val_set, every, run.tokenizer, run.accelerator, QUIET
        )
        assert sorted(together.rows(), key=str) == sorted(alone.rows(), key=str)
        assert (together.giou, together.ciou) == (alone.giou, alone.ciou)
        assert all(0 < built <= len(pictures) / 2 for built, _ in done), done
        assert len(pictures) <= sum(built for built, _ in done), done
        assert sum(evaluated for _, evaluated in done) == len(every) and min(done)[1] > 0, done
        assert f"clip features: {sum(built for built, _ in done)} built" in said[0]
        leave_group(0)

    assert together(3, work, tmp_path / "log") == [0] * 3, (tmp_path / "log").read_text()


def counted(owner: Any, name: str) -> list[int]:
    """How often a function has been called, from now on."""
    calls, real = [0], getattr(owner, name)

    def counting(*arguments: object) -> object:
        calls[0] += 1
        return real(*arguments)

    setattr(owner, name, counting)
    return calls


def evaluations(folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["giou"], row["ciou"]) for row in rows if "evaluation" in row]


def missing(machines: list[Path]) -> str:
    shutil.rmtree(machines[1] / "data")
    return "host-b: data"


def changed(machines: list[Path]) -> str:
    one = next((machines[1] / "data" / "ReasonSeg" / "train").glob("*.json"))
    one.write_text(one.read_text().replace("1", "2"))
    return "host-b: data: not the data of rank 0 on host-a"


def other_weights(machines: list[Path]) -> str:
    for place in machines:
        shutil.copytree(packaged_folder(), place / "model")
    (file,) = (machines[1] / "model").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    return "host-b: model: base weights "


@pytest.mark.parametrize("wrong", [missing, changed, other_weights])
def test_a_machine_without_the_same_data_and_weights_is_named_by_all(
    wrong: Callable[[list[Path]], str], machines: list[Path]
) -> None:
    named = wrong(machines)
    weights = ("--weights", "model") if wrong is other_weights else ()
    codes, said = launch(machines, *NEW, *weights)
    assert codes == [2] * 4, said
    assert all(f"error: {named}" in text and "TCPStore" not in text for text in said), said
    assert "Traceback" not in said[0] + said[1]
    assert not (machines[0] / "run").exists()  # a start that fails leaves no run


@pytest.mark.launcher
def test_under_torchrun_all_say_it_and_nothing_stays(machines: list[Path]) -> None:
    """torchrun ends a machine's other ranks with its first: each has said why, rank 0 tidied."""
    missing(machines)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [
        sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node",
        "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "t",
    ]  # fmt: skip
    path = os.pathsep.join([os.getcwd(), *sys.path])
    launchers, logs = [], [place / "log" for place in machines]
    for place, log in zip(machines, logs, strict=True):
        command = [*torchrun, "-m", "trainer.cli", *NEW]
        launchers.append(subprocess.Popen(command, cwd=place, env=os.environ | {"PYTHONPATH": path},
                                          stderr=log.open("w")))  # fmt: skip
    for launcher in launchers:
        assert launcher.wait(120) == 1  # torchrun's own code
    for log in logs:
        said = log.read_text()
        assert re.search("error: .*: data: data folder: got 'no such folder'", said), said
        assert "exitcode  : 2" in said
        pids = set(map(int, re.findall(r"\(pid: (\d+)\)", said)))
        assert pids and not any(map(psutil.pid_exists, pids))
    assert not (machines[0] / "run").exists()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--set", "micro_batch=3"), "accumulation"),
        (("--set", "processes=2"), "processes: got 2, but the launcher started 4"),
        (("--set", "processes=4", "--set", "nodes=4"), "nodes: got 4"),
        (("--set", "weights=nowhere"), "nowhere"),
    ],
)
def test_what_rank_0_finds_ends_all(more: tuple[str, ...], what: str, machines: list[Path]) -> None:
    codes, said = launch(machines, *NEW, *more)
    assert codes == [2] * 4, said
    assert what in said[0] and "host-a, rank 0: " in said[1] and what in said[1]
    assert "Traceback" not in said[0] + said[1]


def test_auto_advises_once_for_the_weakest_card_of_all(machines: list[Path]) -> None:
    """Two cards a machine; the third rank's has the least memory, on another machine."""

    def before() -> None:
        first = 2 * (int(os.environ["RANK"]) // 2)
        cards = [Card(uuid=f"GPU-{n}", free=free * GIB, total=24 * GIB)
                 for n, free in enumerate([22, 20, 11, 22])][first : first + 2]  # fmt: skip
        sys.modules["pynvml"] = FakeNvml(*cards)
        preflight.advise = seen

    def seen(machine: Machine, model: str, assignments: tuple[str, ...], **_: object) -> Advice:
        cards = [gpu.uuid for gpu in machine.gpus]
        raise ValueError(f"rank {os.environ['RANK']} advises for {cards}: {' '.join(assignments)}")

    options = (*HERE, "--auto", "--model", "7b", "--weights", "random", "--output-dir", "run")
    codes, said = launch(machines, *options, before=before)
    assert codes == [2] * 4, said
    rest = (machines[0].parent / "rest").read_text()
    advised = re.findall("rank . advises.*", said[0] + rest)
    assert len(advised) == 1, said
    assert advised[0].startswith("rank 0 advises for ['GPU-2', 'GPU-3']")
    assert advised[0].endswith("processes=4 nodes=2")


GIVEN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a",
         "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}  # fmt: skip


def test_a_plan_follows_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(effective_batch=8)
    assert launched({}) is None and as_launched(plan, {}) == plan and launch_settings({}) == []
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    assert launched() == (4, 2)
    found = as_launched(plan, {})
    assert (found.processes, found.nodes, found.effective_batch) == (4, 2, 8)
    assert as_launched(found, {"processes": "4"}) == found
    assert launch_settings({}) == ["processes=4", "nodes=2"]
    with pytest.raises(ValueError, match="processes: got 2, but the launcher started 4"):
        as_launched(plan.override(["processes=2"]), {"processes": "2"})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # and 1 on the other machine
    with pytest.raises(ValueError, match="3 of them on this one; allowed: as many on each"):
        launched()


def test_without_a_launcher_a_plan_of_two_machines_says_what_to_type() -> None:
    plan = tiny_plan(effective_batch=8, processes=4, nodes=2, micro_batch=1)
    with pytest.raises(ValueError, match="torchrun --nnodes 2 --nproc_per_node 2"):
        as_launched(plan, {})


def test_every_machine_builds_all_features_and_begins_elsewhere() -> None:
    """Machines that share a folder would otherwise build the same ones at the same time."""
    pictures = [Path(str(number)) for number in range(21)]
    shares = [share_of(pictures, Ranks(rank, 6, rank // 2 * 2, 2)) for rank in range(6)]
    for machine in range(3):
        both = shares[2 * machine] + shares[2 * machine + 1]
        assert sorted(both) == sorted(pictures)
    assert len({tuple(share) for share in shares}) == 6
    assert len({share[0] for share in shares}) == 6
    assert share_of(pictures, Ranks()) == pictures


def test_a_process_without_a_card_of_its_own_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plan = tiny_plan(device="cuda", processes=3, effective_batch=3, micro_batch=1)
    with pytest.raises(ValueError, match="process 3 of this machine has no card: torch sees 2"):
        make_accelerator(plan, None)
