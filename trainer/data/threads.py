"""Processes many pictures in parallel.

In threads where Pillow, OpenCV or files release Python's lock, in processes where the work is in
Python itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from threading import Thread
from typing import Generic, TypeVar

from profiles.environment import usable_cores
from profiles.garbage import not_collected

AHEAD = 4  # results per core that may wait for their turn: they take memory
GROUP = 32  # things sent to a process at once
WORTH_PROCESSES = 1000  # things: starting processes takes as long as a few hundred
MOST_PROCESSES = 4  # the parent, which reads and writes, keeps no more busy
ThingT = TypeVar("ThingT")
ResultT = TypeVar("ResultT")


def in_threads(work: Callable[[ThingT], ResultT], things: Iterable[ThingT]) -> Iterator[ResultT]:
    """Results of `work` on each thing, in order, computed a few ahead. Raises what `work` raises.

    An interrupt waits only for those few.
    """
    cores = usable_cores()
    return _in_order(ThreadPoolExecutor(cores), AHEAD * cores, work, things)


def one_ahead(work: Callable[[ThingT], ResultT], things: Iterable[ThingT]) -> Iterator[ResultT]:
    """As `in_threads`, but one result ahead: for large ones, whose use keeps a card busy."""
    return _in_order(ThreadPoolExecutor(1), 1, work, things)


def in_processes(
    work: Callable[[ThingT], ResultT], things: Iterable[ThingT], count: int
) -> Iterator[ResultT]:
    """As `in_threads`, but in processes, if `count` things are worth starting them.

    Things and results are pickled, in groups. The processes end when this one ends, for whatever
    reason. Raises OSError if the system ended one of them.
    """
    most = min(usable_cores(), MOST_PROCESSES)
    if most == 1 or count < WORTH_PROCESSES:
        yield from map(work, things)
        return
    processes = ProcessPoolExecutor(
        most, multiprocessing.get_context("spawn"), initializer=_depend_on_parent
    )
    try:
        for results in _in_order(processes, AHEAD * most, _Group(work), _groups(things)):
            yield from results
    except BrokenProcessPool:
        raise OSError(
            "the system ended a process that worked on pictures, perhaps because memory ran out\n"
            "    hint: close other programs and try again"
        ) from None


def _in_order(
    workers: Executor, ahead: int, work: Callable[[ThingT], ResultT], things: Iterable[ThingT]
) -> Iterator[ResultT]:
    begun: deque[Future[ResultT]] = deque()
    with workers:
        try:
            for thing in things:
                begun.append(workers.submit(work, thing))
                if len(begun) > ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            workers.shutdown(wait=False, cancel_futures=True)


class _Group(Generic[ThingT, ResultT]):
    """Work on each of a list of things."""

    def __init__(self, work: Callable[[ThingT], ResultT]) -> None:
        self.work = work

    def __call__(self, things: list[ThingT]) -> list[ResultT]:
        with not_collected():  # a search for garbage at most after each group
            return list(map(self.work, things))


def _groups(things: Iterable[ThingT]) -> Iterator[list[ThingT]]:
    those = iter(things)
    while group := list(islice(those, GROUP)):
        yield group


def _depend_on_parent() -> None:
    """End when the parent ends. Ignore Ctrl-C, which a terminal sends to all: the parent acts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
