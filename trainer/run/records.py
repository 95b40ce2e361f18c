"""What a run records: metrics.jsonl in its folder, and the same numbers in TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from profiles.files import force, write_whole

RECORDS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Records:
    """A run's records, in its folder. Only the main process writes them."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.path, self.accelerator = folder, folder / RECORDS, accelerator

    def start(self) -> None:
        """Create the run folder and empty records."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, "")
        self.rebuild_tensorboard()

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; it must have a `step`."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._log(row)

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON file of its own into the run folder."""
        if self.accelerator.is_main_process:
            write_whole(self.folder / name, json.dumps(document, indent=2) + "\n")

    def force(self) -> None:
        """Force all rows to disk."""
        force(self.path)

    @property
    def size(self) -> int:
        """Bytes of all rows so far."""
        return self.path.stat().st_size

    def cut(self, size: int) -> bool:
        """Remove what came after the first `size` bytes; False if there are fewer bytes.

        Where some are missing, a line that is torn at the end is removed as well.
        """
        kept = self.path.read_bytes()[:size] if self.path.exists() else b""
        complete = len(kept) >= size
        if not complete:
            kept = kept[: kept.rfind(b"\n") + 1]
        write_whole(self.path, kept)
        return complete

    def rebuild_tensorboard(self) -> None:
        """Write TensorBoard's files again from the rows, so that no step appears in them twice."""
        folder = self.folder / TENSORBOARD
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.init_trackers(folder.name)
        if self.accelerator.is_main_process:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._log(json.loads(line))

    def _log(self, row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        self.accelerator.log(numbers, step=row["step"])
