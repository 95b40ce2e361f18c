"""lisa-train compare: whether one run is better than others on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiles.streams import say
from profiles.text import argument
from trainer.cli.console import user_errors


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Runs that evaluate has scored.")
    ],
) -> None:
    """Compare the first run with each other one: the difference of gIoU and its 95 % interval.

    Both answered the same questions, so what is easy or hard for both does not widen the interval.
    """
    with user_errors():
        if len(runs) < 2:
            raise ValueError("RUN: got one; give two or more")
        for line in _lines(*runs):
            say(line)


def _lines(first: Path, *others: Path) -> list[str]:
    """The differences. Raises ValueError where two runs have no scores in common."""
    from trainer.answer.compared import SCORED, Scored, differences

    if absent := next((run for run in (first, *others) if not run.is_dir()), None):
        raise ValueError(f"{absent}: there is no such run")
    scored = [Scored(run.resolve().name, sorted(run.glob(SCORED))) for run in (first, *others)]
    found = []
    for run, other in zip(others, scored[1:], strict=True):
        lines = list(differences(scored[0], other))
        if not lines:
            fix = f"lisa-train evaluate {argument(first)}, and evaluate {argument(run)}"
            what = "no scores of the same split, of data of the same name"
            raise ValueError(f"{first} and {run} have {what}\n    hint: {fix}")
        found += lines
    return found
