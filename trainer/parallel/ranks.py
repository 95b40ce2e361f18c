"""The ranks of a launch, and the messages between them before and during the training."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from threading import Timer
from typing import TYPE_CHECKING

from profiles.streams import tell
from trainer.parallel.launch import is_launched
from trainer.parallel.lost import STARTING

if TYPE_CHECKING:
    from torch.distributed import Store

CONNECTING = timedelta(minutes=30)  # between the starts of two machines
ENDING_SECONDS = 30  # by then each has imported torch and heard why
SLOW_SECONDS = 15.0  # after so many of waiting for the others it says so
SLOWEST_LOOK = 0.5  # seconds between two looks for what others say


class Ranks:
    """This process's place in its launch, and words that pass through the launcher's store.

    The store is the one through which torch connects the group. It needs no card, is there before
    the plan is known, and a wait may take hours: a collective that waits for longer than the
    group's timeout ends the run. All ranks call `exchange` in the same order.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, first: int = 0, here: int = 1,
        store: Store | None = None, group_store: Store | None = None,
    ) -> None:  # fmt: skip
        self.rank, self.count, self._store = rank, count, store
        self.group_store = group_store  # for torch's group
        self.of_machine = range(first, first + here)  # the ranks of this machine
        self._calls = 0
        self._said: set[str] = set()

    @staticmethod
    def here() -> Ranks:
        """This process's place, by its launcher's variables; a single rank without a launcher."""
        if not is_launched(os.environ):
            return Ranks()
        if os.environ["WORLD_SIZE"] == "1":
            # Else accelerate founds a group of NCCL alone, where no tensor may be on the CPU.
            from torch.distributed import HashStore

            return Ranks(group_store=HashStore())
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return _connected(*(os.environ[name] for name in names))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self.rank == self.of_machine.start

    def say(self, what: str, text: str) -> None:
        """Let every rank `hear` the text; each name once in a launch."""
        self._said.add(what)
        if self._store is not None:
            self._store.set(f"{what}/{self.rank}", text)

    def has_said(self, what: str) -> bool:
        """Whether this rank has said it."""
        return what in self._said

    def hear(
        self, what: str, ranks: range | None = None, seconds: float = STARTING.total_seconds()
    ) -> list[str]:
        """What each of `ranks`, or of all, has said; waits for it. Raises RuntimeError."""
        keys = [f"{what}/{rank}" for rank in ranks or range(self.count)]
        assert self._store is not None
        try:
            _wait(self._store, keys, seconds)
            return [text.decode() for text in self._store.multi_get(keys)]
        except RuntimeError as error:  # torch's DistError
            raise RuntimeError(f"lost the other ranks while waiting for {what}: {error}") from None

    def exchange(self, what: str, text: str = "") -> list[str]:
        """What every rank says, in their order; returns when all have called it."""
        if self._store is None:
            return [text]
        self._calls += 1
        what = f"{self._calls}/{what}"
        self.say(what, text)
        return self.hear(what)

    def neighbours(self) -> list[int]:
        """Process ids of the other ranks that this one's launcher has started on this machine."""
        heard = self.exchange("process", str(os.getpid()))
        others = [int(heard[rank]) for rank in self.of_machine if rank != self.rank]
        return [pid for pid in others if _is_sibling(pid)]

    def end_together(self) -> None:
        """Wait until all know that they end, but not for long.

        The first process that ends makes its launcher end the others by SIGTERM. Before that, each
        must report why it ends, and rank 0 must clean up.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.say("end", "")
        with suppress(RuntimeError):
            self.hear("end", seconds=ENDING_SECONDS)
            self.say("heard", "")
        if self.is_main:  # leaves last: where torchrun has no part, the store is in its process
            with suppress(RuntimeError):
                self.hear("heard", seconds=2 * SLOWEST_LOOK)


@cache
def _connected(rank: str, count: str, local: str, address: str, port: str) -> Ranks:
    """The launch's store, by its variables; torch's group uses it, too.

    torchrun keeps its store when it restarts processes. torch looks there for the addresses of the
    others, might find those of ended processes, and would wait for them for ever. So a restarted
    launch uses key names of its own, for its messages and for its group.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with _waiting(f"RANK={rank} WORLD_SIZE={count} MASTER_ADDR={address} MASTER_PORT={port}"):
        store, number, size = next(rendezvous("env://", timeout=CONNECTING))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    words, group = PrefixStore(f"lisa-{attempt}", store), PrefixStore(f"attempt-{attempt}", store)
    group.set_timeout(STARTING)
    return Ranks(number, size, number - int(local), here, words, group)


@contextmanager
def _waiting(variables: str) -> Iterator[None]:
    """Report a long wait for other processes: torchrun starts none before all can begin."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return
    said = (
        f"waiting for the other processes of a launch, by this shell's {variables}\n    hint: if "
        "none was started, they are left over: unset RANK, LOCAL_RANK and WORLD_SIZE"
    )
    timer = Timer(SLOW_SECONDS, tell, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_sibling(pid: int) -> bool:
    """Whether both have the same parent; false if each has a container with its own process ids."""
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getppid()


def _wait(store: Store, keys: list[str], seconds: float) -> None:
    """Wait for keys by polling: a wait inside the store would ignore Ctrl-C.

    Each pause is a tenth of the wait so far, so no wait is much longer than it has to be.
    """
    pause, until = 0.01, time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > until:
            raise RuntimeError(f"nothing came for {seconds:.0f} s")
        time.sleep(pause)
        pause = min(SLOWEST_LOOK, 1.1 * pause)


def host() -> str:
    """This machine, as messages name it."""
    return socket.gethostname()


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """How many processes a launcher started, and on how many machines; None without one.

    Raises ValueError if the machines run different numbers of them.
    """
    if not is_launched(environment):
        return None
    count = int(environment["WORLD_SIZE"])
    here = int(environment.get("LOCAL_WORLD_SIZE", count))
    machines = int(environment.get("GROUP_WORLD_SIZE", max(1, count // here)))
    if machines * here != count:
        raise ValueError(
            f"{count} processes were started on {machines} machines, {here} of them on this one; "
            "allowed: as many on each\n    hint: give every machine's launcher the same "
            "--nproc_per_node"
        )
    return count, machines
