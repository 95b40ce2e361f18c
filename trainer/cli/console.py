"""How the command lines speak: progress, errors a user can mend, and exit codes."""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from profiles.files import refused
from profiles.places import cache_folder
from profiles.streams import tell
from profiles.text import argument, printable

if TYPE_CHECKING:
    from profiles.plan import Plan
    from trainer.run.run import Reporter

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_OUT_OF_MEMORY = 75  # of one process among several: the run goes on with less
# Of what the system refuses, that which another name on the command line would mend.
THEIR_FILES = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError,
               PermissionError)  # fmt: skip


def feature_cache() -> Path:
    """The user's folder for encoders' features."""
    return cache_folder() / "features"


def use_allocator(plan: Plan) -> None:
    """Have torch use the plan's allocator settings: the forecast is of them, not of the shell's."""
    if plan.device != "cuda":
        return
    from profiles.environment import ALLOCATOR_VARIABLES
    from trainer.parallel.launch import is_main

    for name in ALLOCATOR_VARIABLES:
        shells = os.environ.get(name, "")
        if shells != plan.allocator:
            os.environ[name] = plan.allocator
            if shells and is_main():
                tell(f"{name}={shells} of this shell is overruled by the plan's "
                     f"{plan.allocator!r}; --set allocator={shells} trains with it")  # fmt: skip


def try_segments(plan: Plan, fix: str = "--set allocator=") -> None:
    """One allocation with the plan's expandable segments, before anything takes long.

    No query tells of them: a virtual GPU may go by any name. Raises ValueError, with `fix`, where
    they do not work here; what is wrong with the card itself is raised as it is.
    """
    if plan.device != "cuda" or "expandable_segments:True" not in plan.allocator:
        return
    import torch

    if not torch.cuda.is_available():
        return  # another message's matter
    device = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.mem_get_info(device)  # without the allocator: the card and its driver as such
    try:
        torch.empty(1 << 21, dtype=torch.uint8, device=f"cuda:{device}")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"expandable segments do not work on this GPU: {said}\n"
            f"    hint: {fix} goes without them, with a pool up to a tenth larger"
        ) from None


def heed_the_plan() -> None:
    """Called first: variables that another session left in the shell do not overrule the plan."""
    from trainer.parallel.launch import is_main, without_leftovers

    main = is_main()
    if (leftovers := without_leftovers(os.environ)) and (main or is_main()):
        tell(f"{', '.join(leftovers)} of this shell: not heeded, the plan decides")


def use_threads(plan: Plan, say: Callable[[str], None]) -> None:
    """On the CPU, as many threads as there are cores for this process, unless the user has said."""
    if plan.device != "cpu":
        return
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        from profiles.environment import threads_for, usable_cores

        torch.set_num_threads(threads_for(usable_cores(), plan.processes, plan.workers))
    say(f"CPU threads: {torch.get_num_threads()} (OMP_NUM_THREADS sets another number)")


def stay_at_home() -> None:
    """Before torch is imported: neither the network nor a folder of others has a say in this."""
    from profiles.environment import at_home

    os.environ.update(at_home(os.environ))


class Plain:
    """Progress as lines, one in ten seconds and each last one; with the time that is left.

    Nothing in the first `patience` seconds: what is over by then needs no progress.
    """

    def __init__(self, patience: float = 0) -> None:
        self.speaks = time.monotonic() + patience
        self.phase, self.first, self.began, self.told = "", 0, 0.0, -math.inf

    def __call__(self, what: str, done: int, total: int) -> None:
        now, phase = time.monotonic(), what.partition(",")[0]
        if phase != self.phase or done < self.first:
            self.phase, self.first, self.began = phase, done, now
        if now < self.speaks or (done < total and now - self.told <= 10):
            return
        self.told, left = now, ""
        if self.first < done < total:
            seconds = (now - self.began) / (done - self.first) * (total - done)
            left = f", {timedelta(seconds=round(seconds))} left"
        tell(f"{what}: {done}/{total}{left}")


def next_steps(run: Path, data: Path) -> str:
    """What to do with a run that has ended."""
    folder = argument(run)
    return (
        f"next: lisa-train evaluate {folder} --data-dir {argument(data)}, "
        f'or lisa-segment PICTURE "QUESTION" --run {folder}'
    )


@contextmanager
def reporter() -> Iterator[Reporter]:
    """A live display on a terminal, plain lines elsewhere; both on stderr, by one process."""
    from trainer.parallel.launch import is_main
    from trainer.run.run import Reporter

    if not is_main():
        yield Reporter(lambda text: None, lambda what, done, total: None)
        return
    if not sys.stderr.isatty():
        yield Reporter(tell, Plain())
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    told = TextColumn("{task.description}", markup=False)  # a folder's [/a] is no order to rich
    columns = (told, BarColumn(), MofNCompleteColumn(), Remaining())

    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=None)

        def live(what: str, done: int, total: int) -> None:
            progress.update(task, description=printable(what), completed=done, total=total)

        yield Reporter(lambda text: progress.console.print(Text(printable(text))), live)


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors that a user can mend become text and an exit code; anything else is a defect."""
    try:
        yield
    except typer.Exit:
        raise  # a RuntimeError itself: it already says how the command ends
    except KeyboardInterrupt as error:
        tell(str(error) or "interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ValueError as error:
        fail(str(error))
    except THEIR_FILES as error:
        fail(refused(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        fix = "make room" if error.errno != errno.EROFS else "name a folder that can be written"
        tell(f"error: {where}{error.strerror}\n    hint: {fix}, then start again; "
             "a run goes on with lisa-train --resume")  # fmt: skip
        raise typer.Exit(EXIT_FAILED) from None
    except RuntimeError as error:
        tell(f"error: {error}")
        raise typer.Exit(EXIT_FAILED) from None


def fail(message: str) -> NoReturn:
    """End with `message` and the exit code of bad usage."""
    text = message if message.startswith("  - ") else f"  - {message}"
    tell(f"error:\n{text}")
    raise typer.Exit(EXIT_USAGE)


@contextmanager
def ended_politely() -> Iterator[None]:
    """A request to end cleans up as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
