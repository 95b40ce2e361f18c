"""Hostile input: every surface gets cases, in a process of its own, within time and memory.

    python benchmarks/fuzz.py                       >= 15 000 cases
    python benchmarks/fuzz.py --seed 7              others
    python benchmarks/fuzz.py --surface plan.json   one surface
    python benchmarks/fuzz.py --rows benchmarks/fuzz.jsonl    keeps what each surface came to
    python benchmarks/fuzz.py --table               the table in the docs, from these rows

A case that fails is made as small as hypothesis can and printed; the same seed finds it again. The
memory of a case is what the process held at most, over what it held before.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from tables import put

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from profiles.sizes import GIB, MIB  # noqa: E402
from tests.fuzz.shown import SURFACES  # noqa: E402
from tests.fuzz.surfaces import Surface, Wrong  # noqa: E402

DOCS, ROWS_FILE = ROOT / "docs" / "hostile-input.md", ROOT / "benchmarks" / "fuzz.jsonl"
BEGIN, END = "<!-- fuzz: benchmarks/fuzz.py -->", "<!-- /fuzz -->"
SECONDS = 10  # of processor time a case; six times as many by the clock end the process
BOUND = {"largest pictures": 2 * GIB}  # bytes of a case
ELSEWHERE = GIB // 2
CASES = 600


@dataclass
class Tally:
    """What became of a surface's cases."""

    name: str
    seed: int
    right: int = 0
    errors: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0

    def line(self) -> str:
        """A row of the table."""
        return (f"| {self.name} | {self.right + self.errors} | {self.right} | {self.errors} | "
                f"{self.slowest_seconds:.2f} | {self.most_bytes / MIB:.0f} |")  # fmt: skip


def status(key: str) -> int:
    """A figure of this process, in bytes: VmHWM (most held), VmRSS (held), VmSize (reserved)."""
    text = Path("/proc/self/status").read_text()
    return int(next(ln for ln in text.splitlines() if ln.startswith(key + ":")).split()[1]) * 1024


def feed(surface: Surface, cases: int, number: int, place: Path) -> Tally:
    """Try the cases. Raises what the first bad case raised, after shrinking that case."""
    tally = Tally(surface.name, number)
    bound = BOUND.get(surface.name, ELSEWHERE)

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, print_blob=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
              report_multiple_bugs=False)  # fmt: skip
    @given(surface.cases)
    def case(one: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the most that is held counts from here
        held, started = status("VmRSS"), time.process_time()
        # Ends the process, and with it what no exception would end, and says where it was.
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        right = surface.try_one(one, place / "case")
        faulthandler.cancel_dump_traceback_later()
        took, most = time.process_time() - started, status("VmHWM") - held
        if took > SECONDS or most > bound:
            raise Wrong(f"took {took:.1f} s and {most / MIB:.0f} MiB")
        tally.right += right
        tally.errors += not right
        tally.slowest_seconds = max(tally.slowest_seconds, took)
        tally.most_bytes = max(tally.most_bytes, most)

    # A case that asks for far more than its limit gets no memory, not the machine's.
    most = status("VmSize") + 4 * bound
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    case()
    return tally


def child(name: str, cases: int, number: int) -> Tally:
    """A surface in a process of its own. Raises RuntimeError with all that it said."""
    command = [sys.executable, __file__, f"--surface={name}", "--cases", str(cases),
               "--seed", str(number), "--json"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = "\n".join(line[:1000] for line in done.stderr.splitlines())[-8000:]
        raise RuntimeError(f"{name}: ended with {done.returncode}, seed {number}\n{said}")
    tally = Tally(**json.loads(done.stdout.splitlines()[-1]))
    print(tally.line(), flush=True)
    return tally


def run_all(cases: int, number: int, workers: int) -> tuple[list[Tally], list[str]]:
    """Every surface's tally, and what went wrong with the others."""
    with ThreadPoolExecutor(workers) as pool:
        begun = [pool.submit(child, s.name, max(12, round(s.share * cases)), number)
                 for s in SURFACES]  # fmt: skip
        failed = [str(error) for one in begun if (error := one.exception())]
        return [one.result() for one in begun if not one.exception()], failed


def keep(tallies: list[Tally], file: Path) -> None:
    """Write one row a surface; it replaces the earlier one, and other surfaces' rows stay."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    rows = {row["name"]: row for row in map(json.loads, lines)}
    rows |= {tally.name: asdict(tally) for tally in tallies}
    known = [rows[surface.name] for surface in SURFACES if surface.name in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in known), "utf-8")


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/hostile-input.md."""
    tallies = [Tally(**row) for row in rows]
    seeds = sorted({tally.seed for tally in tallies})
    total = f"{sum(tally.right + tally.errors for tally in tallies):,}".replace(",", " ")
    told = f"{total} cases, seed {', '.join(map(str, seeds))}."
    head = "| surface | cases | right answers | clear errors | slowest, s | most memory, MiB |"
    lines = [told, "", head, "|---|---|---|---|---|---|", *(tally.line() for tally in tallies)]
    put(DOCS, BEGIN, END, lines)


def main() -> None:
    """Try one surface in this process, or all in others; or write the table of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--surface", choices=[surface.name for surface in SURFACES])
    parser.add_argument("--cases", type=int, default=CASES, help="of a surface with share 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="a file, a line for each surface")
    parser.add_argument("--table", action="store_true", help="write docs/hostile-input.md's table")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        return write_table([json.loads(ln) for ln in ROWS_FILE.read_text("utf-8").splitlines()])
    started = time.monotonic()
    if arguments.surface:
        surface = next(s for s in SURFACES if s.name == arguments.surface)
        with tempfile.TemporaryDirectory() as place:
            tally = feed(surface, arguments.cases, arguments.seed, Path(place))
        print(json.dumps(asdict(tally)) if arguments.json else tally.line())
        if arguments.rows:
            keep([tally], arguments.rows)
        return
    tallies, failed = run_all(arguments.cases, arguments.seed, arguments.workers)
    total = sum(tally.right + tally.errors for tally in tallies)
    told = (f"{total:,} cases in {time.monotonic() - started:.0f} s on {arguments.workers} cores, "
            f"seed {arguments.seed}.").replace(",", " ", 1)  # fmt: skip
    print(told)
    if arguments.rows:
        keep(tallies, arguments.rows)
    if failed:
        sys.exit("\n\n".join([f"{len(failed)} surfaces failed:", *failed]))


if __name__ == "__main__":
    main()
