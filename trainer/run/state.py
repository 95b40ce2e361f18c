"""The state of a run: how far it is, and its checkpoints, from which it resumes bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from profiles.plan import Plan
from trainer.hardware import peaks, versions
from trainer.model.segmentation_model import SegmentationModel
from trainer.parallel.accelerator import wait_for_all
from trainer.parallel.lost import CardWaits, is_lost
from trainer.phase import during
from trainer.run import checkpoint
from trainer.run.checkpoint_files import read_facts
from trainer.run.folder import LAST
from trainer.run.from_main import state_from_main, trained_from_main
from trainer.run.out_of_memory import is_shortage
from trainer.run.progress import Progress
from trainer.run.records import Records
from trainer.run.resume import changes, check_base, check_plan, tidy
from trainer.run.started import Keeping
from trainer.step import UPDATING

BEST = "best"


@dataclass
class State:
    """All that a run's checkpoints hold, and when they are due.

    Random numbers are not part of it: every step and every sample draws its own, from the plan's
    seed.
    """

    folder: Path
    plan: Plan
    keeping: Keeping
    accelerator: Accelerator
    records: Records
    model: SegmentationModel
    optimizer: AcceleratedOptimizer
    scheduler: Any
    facts: dict[str, Any]  # about data, base weights, hardware and versions
    progress: Progress = field(default_factory=Progress)
    saved_step: int = 0
    _saved_at: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last save is as old as the user allows."""
        steps = self.keeping.steps
        late = time.monotonic() - self._saved_at > 60 * self.keeping.minutes
        return late or (steps is not None and self.progress.step - self.saved_step >= steps)

    def save(self, together: bool = True) -> None:
        """Write the checkpoint to resume from; the one before is kept.

        The processes do it `together`, unless some of them may be gone.
        """
        self.progress.saves += 1
        if self.accelerator.is_main_process:
            self.records.force()  # the state refers to them
            checkpoint.save(
                self.folder / LAST, self.model, self.plan,
                self._facts() | {"save": self.progress.saves},
                self._as_saved(), self.keeping.earlier(self.folder),
            )  # fmt: skip
        self._saved_at, self.saved_step = time.monotonic(), self.progress.step
        if together:
            wait_for_all(self.accelerator)

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save if memory runs out, or another process is lost, before the update.

        No parameter has changed yet. The main process saves without waiting for the others, which
        may be gone. It cannot save while its card waits for them.
        """
        try:
            with during("training"):
                yield
        except Exception as error:
            known = is_shortage(error) or is_lost(error)
            if known and not isinstance(error, CardWaits) and UPDATING not in error.__notes__:
                self.optimizer.zero_grad(set_to_none=True)
                self.save(together=False)
            raise

    def save_best(self) -> None:
        """Write the checkpoint that answers questions."""
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / BEST, self.model, self.plan, self._facts())
        wait_for_all(self.accelerator)

    def restore(self, folder: Path, report: Callable[[str], None]) -> None:
        """Continue from the checkpoint in `folder`; records after it are removed.

        Raises CheckpointError, and CannotResume where the plan or the base weights have changed.
        """
        main = self.accelerator.is_main_process
        facts, changed = self._check(folder) if main else ({}, [])
        with during("loading"), checkpoint.state_errors(folder):
            saved: dict[str, Any] = {}
            if main:
                saved = checkpoint.load_state(folder) | {
                    "saves": facts.get("save", 0),
                    "epochs": Plan.read(folder / "plan.json").schedule.epochs,
                }
                checkpoint.load(folder, self.model)
            records_size = self._load(saved)
        if main:
            tidy(self.folder, folder, self.keeping.earlier(self.folder))
            if not self.records.cut(records_size):
                report(f"{self.records.path}: records of some steps are lost")
        self.records.start_trackers()
        report(f"continuing from {folder} after step {self.progress.step}")
        epochs = self.plan.schedule.epochs
        if epochs > saved.get("epochs", epochs):
            rate = self.scheduler.get_last_lr()[0]
            report(f"{saved['epochs']} -> {epochs} epochs: the learning rate goes on as in a run "
                   f"of {epochs}, now at {rate:.3g}")  # fmt: skip
        for change in changed:
            report(f"note: {change}: the rest may differ in the last bits")

    def _facts(self) -> dict[str, Any]:
        now = self.progress
        return {"step": now.step, "metrics": now.metrics, **self.facts, "before": now.before,
                **peaks()}  # fmt: skip

    def _go_on_as_a_longer_run(self) -> None:
        """Set the learning rate to the plan's schedule at this step; restart its patience."""
        self.progress.stale = 0
        steps, bases = self.scheduler.last_epoch, self.scheduler.base_lrs
        shares = [share(steps) for share in self.scheduler.lr_lambdas]
        rates = [base * share for base, share in zip(bases, shares, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        state = self.scheduler.state_dict()
        self.scheduler.load_state_dict(state | {"lr_lambdas": [None], "_last_lr": rates})

    def _as_saved(self) -> dict[str, Any]:
        """Everything that the next step depends on beside the trained tensors."""
        now = self.progress
        scheduler = {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        scaler = self.accelerator.scaler
        return {
            "step": now.step, "evaluated": now.evaluated, "best": now.best,
            "skipped": now.skipped, "stale": now.stale, "best_at": now.best_at,
            "metrics": now.metrics, "before": now.before,
            "records": self.records.size,
            "optimizer": self.optimizer.optimizer.state_dict(), "scheduler": scheduler,
            "scaler": scaler.state_dict() if scaler else {},
        }  # fmt: skip

    def _check(self, folder: Path) -> tuple[dict[str, Any], list[str]]:
        """The facts of a checkpoint, and what has changed since. Raises CannotResume."""
        levers = check_plan(self.plan, Plan.read(folder / "plan.json"))
        facts = read_facts(folder)
        check_base(folder, self.facts["base"])
        return facts, [*levers, *changes(facts, versions())]

    def _load(self, state: dict[str, Any]) -> int:
        """Take in the state that rank 0 has read; returns the bytes of its records."""
        trained_from_main(self.model, self.accelerator)
        state = state_from_main(state, self.accelerator)
        self.progress = Progress(
            step=state["step"], evaluated=state["evaluated"], best=state["best"],
            skipped=state.get("skipped", 0), stale=state.get("stale", 0),
            best_at=state.get("best_at"), saves=state["saves"],
            before=state["before"], metrics=state["metrics"],
        )  # fmt: skip
        self.saved_step = self.progress.step
        optimizer = state["optimizer"]
        optimizer["state"] = {int(number): of for number, of in optimizer["state"].items()}
        self.optimizer.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(state["scheduler"] | {"lr_lambdas": [None]})
        if self.plan.schedule.epochs > state["epochs"]:
            self._go_on_as_a_longer_run()
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return int(state["records"])
