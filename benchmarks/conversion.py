"""Time and memory of lisa-train convert at the true sizes: checkpoints of made-up values on disk.

    python benchmarks/conversion.py [--model 7b]      twice the model's size of disk is needed

Names and shapes are the published ones, as the tests have them; the values are one block over and
over, since neither time nor memory depends on them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from profiles.models import model_profile  # noqa: E402
from tests.trainer.convert import test_convert as published  # noqa: E402
from trainer.convert.convert import Shards, needed_shapes  # noqa: E402
from trainer.model.weights import packaged_folder  # noqa: E402


def write_checkpoint(folder: Path, model: str, name_of: Callable[[str], str | None]) -> int:
    """Write a checkpoint's folder under published names; returns its bytes."""
    folder.mkdir()
    shards, block = Shards(folder, 4 << 30), torch.randn(1 << 22).bfloat16()
    for name, shape in needed_shapes(model_profile(model)).items():
        if (theirs := name_of(name)) is not None:
            repeats = -(-shape.numel() // len(block))
            shards.add(theirs, block.repeat(repeats)[: shape.numel()].view(shape).clone())
    shards.close()
    return sum(path.stat().st_size for path in folder.iterdir())


def own_bytes(process: int) -> int:
    """Resident memory of a process without pages of files, which the system may take back."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0  # it has just ended
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    """Write the sources, convert them in a process of its own, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("7b", "13b"), default="7b")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as place:
        llava, sam, target = (Path(place) / name for name in ("llava", "sam", "out"))
        size = write_checkpoint(llava, model, published.new_llava)
        size += write_checkpoint(sam, model, published.sam)
        shutil.copyfile(packaged_folder() / "tokenizer.json", llava / "tokenizer.json")
        command = [sys.executable, "-m", "trainer.cli", "convert", *map(str, (llava, sam, target))]
        started = time.monotonic()
        child = subprocess.Popen([*command, "--model", model], stdout=sys.stderr, cwd=ROOT)
        own = 0
        while child.poll() is None:
            own = max(own, own_bytes(child.pid))
            time.sleep(0.05)
        if child.returncode:
            raise SystemExit(child.returncode)
        row = {"model": model, "source_bytes": size, "own_peak_bytes": own,
               "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
