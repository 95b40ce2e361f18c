"""What a run records: metrics.jsonl in its folder, and the same numbers in its trackers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from profiles.files import force, write_whole
from profiles.plan import Plan
from trainer.run.resume import flat_settings
from trainer.run.trackers import TENSORBOARD, start_trackers

RECORDS = "metrics.jsonl"


class Records:
    """A run's records, in its folder. Only the main process writes them."""

    def __init__(
        self, folder: Path, plan: Plan, accelerator: Accelerator, report: Callable[[str], None]
    ) -> None:
        self.folder, self.path, self.accelerator = folder, folder / RECORDS, accelerator
        self.settings, self.report = flat_settings(plan.model_dump(mode="json")), report

    def start(self) -> None:
        """Create the run folder and empty records."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, "")
        self.start_trackers()

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
        """Remove everything after the first `size` bytes; False if there are fewer bytes.

        If bytes are missing, an incomplete last line is removed as well.
        """
        kept = self.path.read_bytes()[:size] if self.path.is_file() else b""
        complete = len(kept) >= size
        if not complete:
            kept = kept[: kept.rfind(b"\n") + 1]
        write_whole(self.path, kept)
        return complete

    def start_trackers(self) -> None:
        """Start a new run in every tracker with all rows so far, so that no step is there twice."""
        if not self.accelerator.is_main_process:
            return
        shutil.rmtree(self.folder / TENSORBOARD, ignore_errors=True)
        start_trackers(self.accelerator, self.folder, self.settings)
        for line in self.path.read_text(encoding="utf-8").splitlines():
            self._log(json.loads(line))

    def _log(self, row: dict[str, Any]) -> None:
        """Log a row's numbers. A tracker that fails is left: its server must not end a training."""
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        for tracker in list(self.accelerator.trackers):
            try:
                tracker.log(numbers, step=row["step"])
            except Exception as error:
                if tracker.name == TENSORBOARD:
                    raise
                self.accelerator.trackers.remove(tracker)
                said = str(error).strip().partition("\n")[0] or type(error).__name__
                self.report(f"note: {tracker.name} gets no more figures: {said}; {self.path} "
                            "has all of them")  # fmt: skip
