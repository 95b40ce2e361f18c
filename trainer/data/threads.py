"""Work on many pictures at once, in threads: Pillow, OpenCV and files let go of Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from profiles.environment import usable_cores

AHEAD = 4  # pieces of work a core that are begun or done before their turn: they take memory
T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """`work` on each thing, in the things' order, a few ahead. Raises what the work raises.

    An interrupt waits for no more than those few.
    """
    cores = usable_cores()
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(cores) as threads:
        try:
            for thing in things:
                begun.append(threads.submit(work, thing))
                if len(begun) > AHEAD * cores:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
