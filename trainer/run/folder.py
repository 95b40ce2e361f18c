"""The folder of a run: chosen, locked, and whether the run in it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import typer

from profiles.exits import EXIT_INTERRUPTED, fail
from profiles.files import (
    HOLDER,
    LOCK,
    Held,
    held,
    is_aside,
    is_vacant,
    made,
    read_object,
    sweep,
    writer,
)
from profiles.streams import tell
from profiles.text import argument

LATEST = Path("runs/latest")  # and its siblings, of which `newest_run` finds the newest
TRAINED = "trained.safetensors"  # in every checkpoint and export
STATE = "state.safetensors"  # in every checkpoint to resume from
LAST = "last"  # the newest checkpoint to resume from
RECORD, SUMMARY, OVERLAY = "run.json", "summary.json", "overlay.png"
RECEIPTS = "receipts.json"
# Files written before run.json, and all files that are written atomically into a run folder.
BEFORE = (LOCK, HOLDER, "plan.json", "advice.json", "skipped.txt")
FILES = (*BEFORE, RECORD, "metrics.jsonl", "versions.json", RECEIPTS, SUMMARY, OVERLAY)
WORK = (LAST, "out-of-memory")  # what a start that fails must not delete


@contextmanager
def new_run(wanted: Path) -> Iterator[Path]:
    """A locked run folder: `wanted`, unless something is in it.

    In that case the default name gets a number, which is printed, and a name that the user gave is
    refused. A start that fails leaves no run folder.
    """
    with made(wanted.parent), ExitStack() as stack:
        existed = wanted.exists()
        folder = next(place for place in places(wanted) if _taken(place, wanted, stack))
        if folder != wanted:
            tell(f"{wanted} holds an earlier run (it may be running): this one goes to {folder}")
            existed = False
        sweep(folder, FILES)
        try:
            yield folder
        except Exception as error:
            interrupted = isinstance(error, typer.Exit) and error.exit_code == EXIT_INTERRUPTED
            if not interrupted and not any((folder / name).exists() for name in WORK):
                shutil.rmtree(folder, ignore_errors=True)
                if existed:
                    folder.mkdir(exist_ok=True)
            raise


def newest_run(run: Path, holds: str = f"best/{TRAINED}") -> Path:
    """The newest of `run` and its later siblings `run-2`, `run-3`, … that hold such a file.

    Only for the default name: a name that the user gave is taken literally. Prints which, if it is
    another one.
    """
    if run != LATEST:
        return run
    later = (p for p in run.parent.glob(f"{run.name}-*") if p.name[len(run.name) + 1 :].isdigit())
    held = [p for p in (run, *later) if (p / holds).is_file()]
    newest = max(held, key=lambda folder: _last_written(folder, holds), default=run)
    if newest != run:
        tell(f"the newest run is meant, {newest}; the whole path would name {run}")
    return newest


def _last_written(folder: Path, holds: str) -> float:
    files = (folder / holds, folder / "metrics.jsonl")
    return max(path.stat().st_mtime for path in files if path.is_file())


def places(wanted: Path) -> Iterator[Path]:
    """The names that a new run may have, in order."""
    yield wanted
    for number in range(2, 10_000):
        yield wanted.with_name(f"{wanted.name}-{number}")


def _taken(folder: Path, wanted: Path, stack: ExitStack) -> bool:
    """`_take`; again where a start that failed has removed the folder meanwhile."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            return _take(folder, wanted, stack)
    return False


def _take(folder: Path, wanted: Path, stack: ExitStack) -> bool:
    """Lock a folder if no run is in it. Raises Held for a name that the user gave."""
    if _is_free(folder):
        try:
            stack.enter_context(held(folder))
        except Held as error:
            if wanted != LATEST:
                hint = f"--output-dir {argument(_free_name(wanted))}, or wait for its end"
                raise Held(f"--output-dir: {error}\n    hint: {hint}") from None
            return False
        if _is_free(folder):  # no other process was faster
            return True
    if wanted == LATEST:
        return False
    other = f"; or lisa-train --resume {argument(wanted)} continues the run in it"
    process = writer(wanted)
    goes_on = (wanted / RECORD).exists() and not is_complete(wanted) and process is None
    busy = f", {process} is writing there" if process else ""
    fail(
        f"--output-dir: {wanted} exists already{busy}, and runs are not mixed\n"
        f"    hint: --output-dir {argument(_free_name(wanted))}{other if goes_on else ''}"
    )


def _is_free(folder: Path) -> bool:
    """Whether a folder holds no run: at most the files that are written before run.json."""
    return is_vacant(folder) or (
        (folder / LOCK).is_file()  # else the folder is the user's
        and all(path.name in BEFORE or is_aside(path, FILES) for path in folder.iterdir())
    )


def _free_name(wanted: Path) -> Path:
    """The next unused name."""
    return next(place for place in places(wanted) if not place.exists())


def reopen(folder: Path) -> None:
    """Make a run that is complete one that can be resumed."""
    for name in (OVERLAY, SUMMARY):
        (folder / name).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Whether a run has finished: its overlay exists, and a readable summary."""
    if not (folder / OVERLAY).exists():
        return False
    return {"before", "after", "epochs", "steps"} <= read_object(folder / SUMMARY).keys()
