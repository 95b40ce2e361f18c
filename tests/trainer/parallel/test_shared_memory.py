"""Weights in host memory: one copy for all ranks of a machine, with a private one's numbers."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from profiles.plan import Plan
from profiles.sizes import MIB
from tests.conftest import PHOTOS, tiny_plan
from tests.group import together
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate
from trainer.losses import Totals
from trainer.model.build import build, read_tokenizer
from trainer.model.layers.host import host_tensors, stored_tensors
from trainer.model.layers.host_memory import HostMemory, SharedMemory
from trainer.model.weights import FolderWeights
from trainer.parallel.ranks import Ranks
from trainer.reporter import Reporter
from trainer.run.host_memory import host_memory
from trainer.run.run import Run
from trainer.step import WEIGHTS

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux's files in memory")
CPU = torch.device("cpu")
PLAN = tiny_plan(quantization="nf4", checkpointed_layers=4, host_layers=3, host_embeddings=True)


def in_ranks(count: int, work: Callable[[Ranks], None], log: Path, machines: int = 1) -> None:
    """Have each rank assert `work`; all end together."""

    def one() -> None:
        ranks = Ranks.here()
        work(ranks)
        ending(ranks)

    assert together(count, one, log, machines) == [0] * count, log.read_text()


def ending(ranks: Ranks) -> None:
    """Rank 0 ends last: it holds what the others say."""
    ranks.say("end", "")
    if ranks.is_main:
        ranks.hear("end")


def loss_of(plan: Plan, memory: HostMemory) -> tuple[Tensor, list[Tensor]]:
    """A loss and its gradients, and the host tensors, of a model in that memory."""
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, CPU, memory=memory)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    batch = collate([samples[0]], tokenizer)
    loss = model(batch).weighted(Totals(len(batch.answers), len(batch.targets)), WEIGHTS)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([loss[None], *(one.flatten() for one in gradients)]), host_tensors(model)


def file_of(tensor: Tensor) -> str:
    """The file that is mapped where a tensor is, by device and inode."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return " ".join(line.split()[3:5])
    raise AssertionError("nowhere")


def test_ranks_of_a_machine_hold_the_same_memory_and_numbers(tmp_path: Path) -> None:
    """Two machines of two: each pair has a file of its own, which a change shows."""

    def work(ranks: Ranks) -> None:
        shared, tensors = loss_of(PLAN, host_memory(PLAN, ranks))
        if ranks.rank in (0, 3):  # one that has filled it, and one that has not
            alone, _ = loss_of(PLAN, HostMemory())
            assert torch.equal(shared, alone)
        assert len(tensors) == 5  # three layers, table and head
        files = ranks.exchange("files", ",".join(map(file_of, tensors)))
        assert len(set(files[ranks.rank].split(","))) == 1 and len(set(files)) == 2
        assert files[0] == files[1] != files[2] == files[3]
        if ranks.rank == 0:
            tensors[0].fill_(77)
        ranks.exchange("changed")
        assert bool((tensors[0] == 77).all()) == (ranks.rank < 2)

    in_ranks(4, work, tmp_path / "log", machines=2)


def share_of(tensor: Tensor) -> int:
    """This process's share, in bytes, of the memory that is mapped where a tensor is.

    Not of all that it uses: what it shares with the process that forked it goes up and down.
    """
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= tensor.data_ptr() < int(bounds[2], 16)
        elif here and line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="shares of memory are Linux's")
def test_two_ranks_hold_it_once(tmp_path: Path) -> None:
    """Both read all of it; private copies would take twice as much."""
    size = 128 * MIB

    def work(ranks: Ranks) -> None:
        memory = host_memory(PLAN, ranks)
        block = memory.block(size, CPU)
        if memory.fills:
            block.fill_(1)
        memory.complete()
        assert int(block.sum(dtype=torch.int64)) == size
        ranks.exchange("read")
        taken = sum(map(int, ranks.exchange("taken", str(share_of(block)))))
        assert 0.9 * size < taken < 1.15 * size, taken / size

    in_ranks(2, work, tmp_path / "log")


def test_only_one_rank_reads_the_tables(tmp_path: Path) -> None:
    """The others would hold a copy of their own for a moment."""

    def work(ranks: Ranks) -> None:
        asked: list[str] = []
        real = FolderWeights.get

        def get(self: FolderWeights, name: str, *rest: object) -> Tensor:
            asked.append(name)
            return real(self, name, *rest)  # type: ignore[arg-type]

        FolderWeights.get = get  # type: ignore[assignment]
        model = build(PLAN, read_tokenizer(PLAN), CPU, memory=host_memory(PLAN, ranks))
        tables = [name for name in model.tables() if name in asked]
        assert len(tables) == (2 if ranks.is_main else 0)

    in_ranks(2, work, tmp_path / "log")


def test_the_model_of_a_run_stays_in_the_buffers_of_its_host_layers(
    cache: Path, tmp_path: Path
) -> None:
    """accelerate would move it to cpu:1, say: a copy, into which no layer is ever fetched."""
    plan = PLAN.override(["processes=2", "micro_batch=1"])
    data = read_split(PHOTOS, "train")[:2], read_split(PHOTOS, "val", 1)

    def work(ranks: Ranks) -> None:
        quiet = Reporter(lambda text: None, lambda what, done, total: None)
        model = Run(plan, *data, tmp_path, cache, quiet).model
        layers = model.host_layers
        assert layers is not None
        for index, number in model.host_numbers.items():
            layers.fetch(number, 1)
            owner, name = next(stored_tensors(model.decoder_layers[index]))
            value = getattr(owner, name)
            assert value.data_ptr() == layers.buffers[number % 2].data_ptr()
            assert torch.equal(value.flatten(), layers.host[number][: value.numel()])

    in_ranks(2, work, tmp_path / "log")


def test_without_host_weights_or_other_ranks_nothing_is_shared(tmp_path: Path) -> None:
    assert type(host_memory(PLAN, Ranks())) is HostMemory
    assert type(host_memory(tiny_plan(), Ranks(0, 2, 0, 2))) is HostMemory
    assert type(host_memory(PLAN, Ranks(1, 2, 1, 1))) is HostMemory  # one rank on each machine


def test_memory_that_is_not_there_is_said_at_once() -> None:
    """Not by a signal when it is written. A limit on the size of files stands for full memory."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    memory = SharedMemory(os.memfd_create("test"), True, lambda: None)
    memory.block(MIB, CPU)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, before[1]))
    try:
        with pytest.raises(RuntimeError, match="cannot share 0.00 GiB of host memory"):
            memory.block(2 * MIB, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        memory.complete()


@pytest.mark.parametrize("signal", [0, 9])
def test_the_memory_is_freed_with_the_ranks(signal: int, tmp_path: Path) -> None:
    """However they end: no file stays behind, and the system has its memory back."""
    before = in_files()

    def work() -> None:
        ranks = Ranks.here()
        memory = host_memory(PLAN, ranks)
        block = memory.block(512 * MIB, CPU)
        memory.complete()
        assert in_files() - before > 400 * MIB and len(block) == 512 * MIB
        ending(ranks)
        if signal:
            os.kill(os.getpid(), signal)
        os._exit(0)

    codes = together(2, work, tmp_path / "log")
    assert codes == [-signal] * 2, (tmp_path / "log").read_text()
    assert abs(in_files() - before) < 100 * MIB


def in_files() -> int:
    """Bytes of the system's memory in files without a disk."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))
