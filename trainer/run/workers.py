"""Data workers: how they end, and how their errors are reported."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from traceback import clear_frames
from typing import Any

from torch.utils.data import DataLoader

from profiles.text import argument
from trainer.batch import Batch
from trainer.parallel.launch import end_with_parent

FROM_WORKER = "Original Traceback"  # torch puts it into an error that a data worker raised


class WorkerEnded(RuntimeError):
    """A data worker that was ended from outside; the message says how to resume the run."""


def end_with_run(number: int) -> None:
    """Runs in each data worker: a forked one shares the run folder's lock and would keep it."""
    end_with_parent()


def without_traceback(loader: DataLoader[Any], run: Path) -> Iterator[Batch]:
    """The loader's batches; an error in a data worker without that worker's traceback."""
    try:
        yield from _iterator(loader)
    except Exception as error:
        found = _in_our_words(error, run)
        if found is None:
            raise
        # torch's frames hold its iterator, whose workers end with it: else when garbage is looked
        # for, where the queue that would tell them has gone, and five seconds are waited for each.
        clear_frames(error.__traceback__)
        raise found from None


def _in_our_words(error: Exception, run: Path) -> Exception | None:
    """What to raise for an error of a data worker; None for another one."""
    # A lost worker is noticed by torch, or by a transfer that breaks off.
    lost = isinstance(error, ConnectionError | EOFError) and FROM_WORKER not in str(error)
    if lost or str(error).startswith("DataLoader worker"):
        return WorkerEnded(
            "a data worker was ended from outside, perhaps because host memory ran out\n"
            f"    hint: lisa-train --resume {argument(run)} continues; "
            "with --set workers=0 it takes less host memory"
        )
    if FROM_WORKER in str(error):
        return type(error)(_last_words(error))
    return None


def _iterator(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's iterator.

    When a worker dies, torch's signal handler raises wherever this process is, even in the middle
    of an update or a save. Without the handler, waiting for the worker's batch notices within 5 s.
    """
    batches = iter(loader)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


def _last_words(error: Exception) -> str:
    """An error's own text, without the worker's traceback that torch adds."""
    kind = type(error)
    heads = [kind.__name__, f"{kind.__module__}.{kind.__qualname__}"]
    text = str(error)
    starts = [text.rfind(f"\n{head}: ") + len(head) + 3 for head in heads if f"\n{head}: " in text]
    return text[max(starts, default=0) :].strip()
