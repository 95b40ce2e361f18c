"""Cost of forecasting the 7B step on this machine: seconds, first and later, and memory.

    python benchmarks/forecast_time.py

Targets on two cores: 8 s cold, 3 s for each further one in the same process, 3 GiB. Exit code 1 if
one is missed.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from profiles.plan import Plan

REPEATS = 3
PLAN = {"model": "7b", "device": "cuda", "micro_batch": 4, "checkpointed_layers": "all",
        "effective_batch": 4}  # fmt: skip


def cold() -> float:
    """Wall seconds of `lisa-advise forecast` with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(Plan.parse(PLAN).to_json())
        program = str(Path(sys.executable).with_name("lisa-advise"))
        started = time.monotonic()
        command = [program, "forecast", str(path), "--vram", "8GiB"]
        environ = os.environ | {"XDG_CACHE_HOME": folder}
        subprocess.run(command, check=True, capture_output=True, env=environ)
        return time.monotonic() - started


def further() -> float:
    """Seconds of one more forecast in a process that has made one."""
    from advisor.memory.forecast import interpret
    from trainer.rehearse.fake import fake_rehearsal

    def one(micro_batch: int) -> float:
        plan = Plan.parse(PLAN | {"micro_batch": micro_batch, "effective_batch": micro_batch})
        started = time.monotonic()
        interpret(*fake_rehearsal(plan, 96, 1))
        return time.monotonic() - started

    one(4)
    return statistics.median(one(micro_batch) for micro_batch in (2, 5, 10))


def main() -> None:
    """Measure, print the table, and say whether the targets are met."""
    cold()  # the first call reads the files from the disk
    seconds = statistics.median(cold() for _ in range(REPEATS))
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = (("cold, s", seconds, 8.0), ("further, s", further(), 3.0),
            ("peak memory, GiB", child, 3.0))  # fmt: skip
    print("| | seen | target |\n|---|---|---|")
    for name, seen, target in rows:
        print(f"| {name} | {seen:.1f} | {target:g}: {'met' if seen <= target else 'MISSED'} |")
    sys.exit(any(seen > target for _, seen, target in rows))


if __name__ == "__main__":
    main()
