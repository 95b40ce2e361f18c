"""Record requests to torch's CUDA caching allocator and its answers, on a GPU.

    python benchmarks/snapshots.py FOLDER [NAME ...]

Each recording is a fresh process: a model is built, evaluated and trained for two steps while the
allocator keeps its history. What is kept of it (`NAME.json.gz`) is the order of requests and
releases, and the pool's growth and shrinking between them: the test data of the replay in
`advisor/memory/allocator.py`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lean  # noqa: E402

from profiles.environment import ALLOCATOR_VARIABLES  # noqa: E402
from profiles.plan import Plan  # noqa: E402

# torch's word for an event -> the kept one.
KINDS = {
    "alloc": "take", "free_completed": "give", "segment_alloc": "grow", "segment_map": "grow",
    "segment_free": "shrink", "segment_unmap": "shrink", "oom": "oom",
}  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """A plan over `lean.BASE`, and a cap on the pool in GiB."""

    name: str
    settings: dict[str, Any]
    cap_gib: float | None = None
    text: int = 96


TINY = {"model": "tiny", "weights": "default", "cached_encoders": []} | lean.batch(4)
OLD = {"allocator": ""}
FAT = lean.SEED | lean.FREE | lean.lora(32) | lean.batch(2)
RECORDINGS = [
    Recording("tiny", TINY | OLD),
    Recording("tiny-expandable", TINY),
    Recording("7b", lean.FREE | lean.batch(4) | OLD),
    Recording("7b-expandable", lean.FREE | lean.batch(4)),
    Recording("7b-twice-8bit", lean.FREE | lean.SMALL | lean.HOST | OLD
              | {"micro_batch": 2, "accumulation": 2, "checkpointed_layers": 20}, text=230),
    Recording("7b-at-cap", FAT | OLD, cap_gib=7.75),
    Recording("7b-at-cap-expandable", FAT, cap_gib=7.75),
    Recording("7b-online", lean.SEED | lean.lora(8) | OLD),
]  # fmt: skip


def record(recording: Recording) -> dict[str, Any]:
    """Record in this process."""
    plan = Plan.parse(lean.BASE | recording.settings)
    for variable in ALLOCATOR_VARIABLES:
        os.environ[variable] = plan.allocator
    import torch

    from trainer.rehearse.real import Rehearsal

    total = torch.cuda.get_device_properties(0).total_memory
    if recording.cap_gib:
        torch.cuda.set_per_process_memory_fraction(recording.cap_gib * 2**30 / total)
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=2_000_000)
    verdict = "FITS"
    try:
        rehearsal = Rehearsal(plan, (recording.text, recording.text), masks=1)
        rehearsal.evaluate()
        for _ in range(2):
            rehearsal.step()
    except torch.OutOfMemoryError:
        verdict = "OOM"
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    snapshot = torch.cuda.memory._snapshot()
    return {
        "name": recording.name,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "allocator": plan.allocator,
        "settings": {k: v for k, v in snapshot["allocator_settings"].items()
                     if isinstance(v, str | int | float | bool)},
        "cap_bytes": round(recording.cap_gib * 2**30) if recording.cap_gib else None,
        "verdict": verdict,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "retries": stats["num_alloc_retries"],
        "events": numbered(snapshot["device_traces"][0]),
    }  # fmt: skip


def numbered(trace: list[dict[str, Any]]) -> list[list[Any]]:
    """[kind, number of the block or segment, bytes, stream], addresses and streams renumbered."""
    blocks: dict[int, int] = {}
    streams: dict[int, int] = {}
    events: list[list[Any]] = []
    made = 0
    for entry in trace:
        kind = KINDS.get(entry["action"])
        if kind is None:
            continue
        stream = streams.setdefault(entry["stream"], len(streams))
        number = None
        if kind == "take":
            number = blocks[entry["addr"]] = made
            made += 1
        elif kind == "give":
            number = blocks.pop(entry["addr"], None)
        events.append([kind, number, entry["size"], stream])
    return events


def main() -> None:
    """Each recording in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    wanted = [r for r in RECORDINGS if not arguments.names or r.name in arguments.names]
    if arguments.child:
        found = record(wanted[0])
        path = arguments.folder / f"{wanted[0].name}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(found, separators=(",", ":")).encode(), mtime=0))
        events = found.pop("events")
        print(len(events), path.stat().st_size, found)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    children = []
    for recording in wanted:
        command = [sys.executable, __file__, str(arguments.folder), recording.name, "--child"]
        children.append(subprocess.Popen(command, cwd=lean.HERE.parent))
    for child in children:
        child.wait()


if __name__ == "__main__":
    main()
