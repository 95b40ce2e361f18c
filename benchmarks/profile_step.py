"""Where the time of one training step goes on a GPU, and whether copies run beside arithmetic.

    python benchmarks/profile_step.py ROW [ROW ...] [--out FILE]     rows of benchmarks/lean.py

Prints, for each row, the kernels by kind and the largest of each, the share of the step in which
the GPU was busy, and the share of host-to-device copy time that ran beside a kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lean  # noqa: E402

from profiles.environment import ALLOCATOR_VARIABLES  # noqa: E402
from profiles.plan import Plan  # noqa: E402

KINDS = (
    ("copy to device", ("HtoD",)),
    ("copy", ("Memcpy", "Memset")),
    ("attention", ("flash", "fmha", "attention")),
    ("matrix product", ("gemm", "nvjet", "cutlass", "cublas", "splitKreduce", "xmma")),
    ("dequantisation", ("Dequantize", "dequantize")),
    ("codes of FP8", ("_quantise_row", "_nf4_tile", "_dense_tile")),
    ("optimizer", ("Optimizer", "adam", "Adam")),
)


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name; the rest is element-wise work and reductions."""
    for kind, marks in KINDS:
        if any(mark in name for mark in marks):
            return kind
    return "element-wise"


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint spans that cover the same time."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def length(spans: list[tuple[float, float]]) -> float:
    """Total of disjoint spans."""
    return sum(end - start for start, end in spans)


def gaps(events: list[Any]) -> list[tuple[float, str, str]]:
    """(ms, kernel before, kernel after) of the times when nothing ran on the GPU, longest first."""
    found, end, last = [], None, ""
    for event in sorted(events, key=lambda e: e.time_range.start):
        if end is not None and event.time_range.start > end:
            found.append(((event.time_range.start - end) / 1e3, last, event.name))
        if end is None or event.time_range.end > end:
            end, last = event.time_range.end, event.name
    return sorted(found, reverse=True)


def row_of(name: str) -> tuple[Plan, int]:
    """The plan and the text tokens of a row."""
    row = next(row for row in lean.all_rows() if row.name == name)
    return Plan.parse(lean.BASE | row.settings), int(row.text)


def profile(name: str, plan: Plan, text: int, masks: int = 1) -> dict[str, Any]:
    """Profile one step in this process."""
    for variable in ALLOCATOR_VARIABLES:
        os.environ[variable] = plan.allocator
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from trainer.rehearse.real import Rehearsal, _timed

    rehearsal = Rehearsal(plan, (text, text), masks)
    for _ in range(4):
        rehearsal.step()
    seconds = min(_timed(rehearsal, rehearsal.batches()) for _ in range(3))
    batches = rehearsal.batches()
    with torch_profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        rehearsal.step(batches)
        torch.cuda.synchronize()
    # Ranges such as an optimizer's own mark are no kernels.
    events = [
        e
        for e in recorded.events()
        if str(e.device_type).endswith("CUDA") and not e.name.startswith("Optimizer.")
    ]
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    by_name: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        begin, end = event.time_range.start, event.time_range.end
        spans[kind_of(event.name)].append((begin, end))
        by_name[event.name][0] += 1
        by_name[event.name][1] += (end - begin) / 1e3
    idle = gaps(events)
    copies = merged(spans.pop("copy to device", []))
    kernels = merged([span for kind in spans.values() for span in kind])
    beside = length(copies) + length(kernels) - length(merged(copies + kernels))
    top = sorted(by_name.items(), key=lambda item: -item[1][1])[:28]
    return {
        "name": name,
        "step_ms": round(seconds * 1e3, 1),
        "kinds_ms": {k: round(sum(b - a for a, b in v) / 1e3, 1) for k, v in spans.items()},
        "kernels_busy_ms": round(length(kernels) / 1e3, 1),
        "idle_ms": [round(ms, 2) for ms, _, _ in idle[:8]],
        "idle_between": [(before[:60], after[:60]) for _, before, after in idle[:8]],
        "copy_to_device_ms": round(length(copies) / 1e3, 1),
        "copy_beside_kernels": round(beside / length(copies), 3) if copies else None,
        "largest": [(kind_of(n), n[:110], int(c), round(ms, 2)) for n, (c, ms) in top],
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Profile rows, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        name = arguments.names[0]
        print(json.dumps(profile(name, *row_of(name))))
        return
    for name in arguments.names:
        command = [sys.executable, __file__, name, "--child"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=lean.HERE.parent)
        if done.returncode:
            print(name, done.stderr[-3000:])
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        for key, value in found.items():
            if key != "largest":
                print(f"{key}: {value}")
        for kind, kernel, count, ms in found["largest"]:
            print(f"  {ms:9.2f} ms {count:5} {kind:15} {kernel}")
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
