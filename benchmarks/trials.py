"""What the long trials have in common: options, rows that are continued, processes side by side."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def options(doc: str | None, processes: int) -> argparse.ArgumentParser:
    """A parser with the options of every trial."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "--processes", type=int, default=processes, help=f"side by side  [{processes}]"
    )
    parser.add_argument("--rows", type=Path, help="a file, a line for each case; continues it")
    parser.add_argument("--table", action="store_true", help="write docs/recovery.md's table")
    return parser


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder, also for the caches and the table of all that is started."""
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"XDG_DATA_HOME": f"{name}/data", "XDG_CACHE_HOME": f"{name}/kept"}
        yield Path(name)


def rows_in(kept: Path) -> Rows:
    """The rows of a file, without a last row that a kill left half written."""
    rows = []
    if kept.exists():
        content = kept.read_text()
        kept.write_text(content[: content.rfind("\n") + 1])
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
    return rows


def still_to_run(cases: list[tuple[str, int]], kept: Path) -> tuple[Rows, list[tuple[str, int]]]:
    """The rows that a file holds of these cases, each a kind and a number; and the other cases."""
    done = {(row["kind"], row["number"]): row for row in rows_in(kept)}
    return [done[one] for one in cases if one in done], [one for one in cases if one not in done]


def side_by_side(work: Callable[..., Rows], many: int, cases: Sequence[Any], *rest: object) -> Rows:
    """The rows of all cases: each of so many forked processes works on its share of them."""
    shares = [(cases[n::many], *rest) for n in range(many)]
    with ProcessPoolExecutor(many, multiprocessing.get_context("fork")) as pool:
        return [row for rows in pool.map(work, *zip(*shares, strict=True)) for row in rows]
