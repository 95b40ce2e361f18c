"""How the commands report: progress, errors that a user can fix, and exit codes."""

from __future__ import annotations

import errno
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from profiles.exits import EXIT_FAILED, EXIT_INTERRUPTED, fail
from profiles.files import reason, refused
from profiles.streams import tell
from profiles.text import argument, printable

if TYPE_CHECKING:
    from trainer.reporter import Reporter

# System errors that another name on the command line would avoid.
THEIR_FILES = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError,
               PermissionError)  # fmt: skip
# What helps against others.
_HELP = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "name a folder that can be written",
    errno.EFBIG: "allow larger files (ulimit -f), or name a folder on another file system",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the whole machine has too many open files",
    errno.ELOOP: "name a path without links that lead in a circle",
    errno.ENOMEM: "close other programs",
    errno.EAGAIN: "allow more processes (ulimit -u)",
}
# What to do after that: by most commands, and by one that trains.
AGAIN = "the same command again"
RESUME = "lisa-train --resume RUN; if no run has begun, the same command again"


class LineProgress:
    """Progress as lines with the time left: one every `pause` seconds, and the last one.

    Silent for the first `patience` seconds: work that ends by then needs no progress. It shows the
    time left of the phase and, where known, of the whole run.
    """

    def __init__(self, patience: float = 0, pause: float = 10) -> None:
        self.pause = pause
        self.silent_until = time.monotonic() + patience
        self.phase, self.first, self.began, self.printed = "", 0, 0.0, -math.inf
        self.of_run = ""

    def run_left(self, seconds: float | None) -> None:
        """Take in what is left of the whole run."""
        self.of_run = _of_run(seconds)

    def __call__(self, what: str, done: int, total: int) -> None:
        now, phase = time.monotonic(), what.partition(",")[0]
        if phase != self.phase or done < self.first:
            self.phase, self.first, self.began = phase, done, now
        if now < self.silent_until or (done < total and now - self.printed <= self.pause):
            return
        self.printed, left = now, ""
        if self.first < done < total:
            seconds = (now - self.began) / (done - self.first) * (total - done)
            left = f", {timedelta(seconds=round(seconds))} left"
        tell(f"{what}: {done}/{total}{left}{self.of_run}")


def _of_run(seconds: float | None) -> str:
    """What is left of a whole run, behind other figures."""
    return "" if seconds is None else f", run {timedelta(seconds=round(seconds))} left"


def next_steps(run: Path) -> str:
    """The commands to use next, after a run has ended."""
    folder = argument(run)
    return f'next: lisa-train evaluate {folder}, or lisa-segment PICTURE "QUESTION" --run {folder}'


@contextmanager
def reporter() -> Iterator[Reporter]:
    """A live display on a terminal, plain lines elsewhere; both on stderr, by one process."""
    from trainer.parallel.launch import is_main
    from trainer.reporter import Reporter

    if not is_main():
        yield Reporter(lambda text: None, lambda what, done, total: None)
        return
    if not sys.stderr.isatty():
        lines = LineProgress()
        yield Reporter(tell, lines, lines.run_left)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    description = TextColumn(
        "{task.description}", markup=False
    )  # a [/a] in a folder's name is not markup
    of_run = TextColumn("{task.fields[left]}", markup=False)
    columns = (description, BarColumn(), MofNCompleteColumn(), Remaining(), of_run)

    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=None, left="")

        def live(what: str, done: int, total: int) -> None:
            progress.update(task, description=printable(what), completed=done, total=total)

        def left(seconds: float | None) -> None:
            progress.update(task, left=_of_run(seconds).removeprefix(", "))

        yield Reporter(lambda text: progress.console.print(Text(printable(text))), live, left)


@contextmanager
def user_errors(again: str = AGAIN) -> Iterator[None]:
    """Print errors that a user can fix and end with an exit code; anything else is a defect.

    `again`: what to do once the system works again.
    """
    try:
        yield
    except typer.Exit:
        raise  # typer.Exit is a RuntimeError, and already decides the exit code
    except KeyboardInterrupt as error:
        from trainer.parallel.launch import is_main

        if is_main():  # what one of a group says is true of all
            tell(str(error) or "interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ValueError as error:
        fail(str(error))
    except THEIR_FILES as error:
        fail(refused(error))
    except OSError as error:
        # A usage error, which profiles/start.py reports; a reader who has gone, as `head` goes.
        if error.errno in (errno.ENAMETOOLONG, errno.EPIPE):
            raise
        tell(f"error: {of_the_system(error, again)}")
        raise typer.Exit(EXIT_FAILED) from None
    except RuntimeError as error:
        tell(f"error: {error}")
        raise typer.Exit(EXIT_FAILED) from None


def of_the_system(error: OSError, again: str) -> str:
    """What the disk, or another part of the machine, refused; one without a number says it all."""
    if error.errno in (None, errno.EINVAL):  # words of our own, such as of a pipe for a file
        return refused(error)
    said = refused(error) if error.filename else reason(error)
    fix = _HELP.get(error.errno, "see whether the disk, or the network folder, still works")
    return f"{said}\n    hint: {fix}, then {again}"


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """On SIGTERM clean up as on Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
