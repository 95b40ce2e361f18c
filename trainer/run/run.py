"""The training run: caches, model, epochs, evaluation, checkpoints and the run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import get_scheduler

from profiles.files import force, write_whole
from profiles.plan import Plan
from profiles.text import argument, counted, one_line
from trainer.batch import Batch
from trainer.data.formats.reasonseg import Item
from trainer.data.mixture import MixedSets
from trainer.data.samples import MicroBatches, SampleSet, collate, image_paths, length_step
from trainer.hardware import free_bytes, hardware, peaks, versions
from trainer.model.build import build, check_compiler, read_tokenizer
from trainer.model.footprint import check_fits
from trainer.model.trained import GradientCheck, trained_names
from trainer.model.weights import weight_source
from trainer.parallel.accelerator import make_accelerator
from trainer.phase import during
from trainer.reporter import Reporter
from trainer.run import checkpoint
from trainer.run.feature_caches import prepare_caches
from trainer.run.folder import SUMMARY
from trainer.run.metrics import MaskScores
from trainer.run.out_of_memory import is_shortage
from trainer.run.resume import (
    LAST,
    USUAL,
    CannotResume,
    Keeping,
    Stop,
    changes,
    check_plan,
    tidy,
)
from trainer.run.validation import describe, evaluate
from trainer.run.workers import MOST_WORKERS_LOST, WorkerEnded, end_with_run, told_plainly
from trainer.step import UPDATING, NotFinite, StepResult, make_optimizer, training_step

RECORDS = "metrics.jsonl"


class Interrupted(KeyboardInterrupt):
    """The run was asked to end and has saved; says how to continue it."""


class Run:
    """One training run in one process."""

    def __init__(
        self,
        plan: Plan,
        train: list[Item] | MixedSets,
        val: list[Item],
        folder: Path,
        cache_root: Path,
        reporter: Reporter,
        keeping: Keeping = USUAL,
    ) -> None:
        self.keeping, self.stop = keeping, Stop()
        self.saved, self.saved_step = time.monotonic(), 0
        self.plan, self.val, self.folder, self.reporter = plan, val, folder, reporter
        self.accelerator = make_accelerator(plan, folder)
        # A missing card comes before missing weights, which are gigabytes to fetch for nothing.
        free = free_bytes(plan) if plan.device == "cuda" else None
        self.tokenizer = read_tokenizer(plan)
        if free is not None:
            if plan.compile:
                check_compiler()
            check_fits(plan, self.tokenizer, *free)
        if isinstance(train, MixedSets):
            SampleSet(train, plan, self.tokenizer, {}, training=True).check_lengths()
        images = image_paths(train.drawn(plan) if isinstance(train, MixedSets) else train, val)
        with during("building features"):
            caches = prepare_caches(plan, images, cache_root, self.accelerator, reporter)
        make_set = partial(SampleSet, plan=plan, tokenizer=self.tokenizer, caches=caches)
        self.train_set = make_set(train, training=True)
        self.val_set = make_set(val, training=False)
        with during("loading"):
            self.model = build(plan, self.tokenizer, self.accelerator.device)
        self.check = GradientCheck(self.model, trained_names(self.model, plan))
        optimizer = make_optimizer(self.model, plan)
        self.sampler = MicroBatches(
            len(train), plan, self.train_set.length, self.accelerator.process_index
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        # Two numbers have one sum; on a GPU not even the rest of a step is the same twice.
        if plan.device == "cpu" and plan.processes > 2:
            from trainer.parallel.in_order import add_in_order

            add_in_order(self.wrapped)
        self.scheduler = self._schedule(optimizer)
        self.step = self.evaluated = 0  # optimizer steps, and epochs
        self.skipped = 0  # updates left out because they were not finite
        self.workers_lost = 0  # data workers, in this process
        self.saves = 0  # states saved, over all processes that have continued the run
        self.best: float | None = None
        self.best_at: dict[str, Any] | None = None  # its evaluation and epoch
        self.metrics: dict[str, Any] = {}  # of the last evaluation
        self.facts: dict[str, Any] = {
            "data": {"train": len(train), "val": len(val)},
            "base": weight_source(plan).fingerprint,
            "hardware": hardware(self.accelerator.device),
            "versions": versions(),
        }

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        schedule, total = self.plan.schedule, self.sampler.steps * self.plan.schedule.epochs
        name = "constant_with_warmup" if schedule.shape == "constant" else schedule.shape
        return get_scheduler(name, optimizer, min(schedule.warmup_steps, total // 2), total)

    def start_from(self, folder: Path) -> None:
        """Take the trained tensors that an adapter's folder holds. Raises AdapterError."""
        from trainer.run.start_from_adapter import start

        with during("loading"):
            count = start(folder, self.plan, self.model, self.tokenizer.new_ids)
        self.reporter.line(f"starting from {one_line(folder)}: {counted(count, 'tensor')}")

    def train(self, resume: Path | None = None) -> dict[str, Any]:
        """Evaluate, then train and evaluate epoch after epoch; returns the summary.

        With a checkpoint to `resume` from, what it has done is not done again, and the rest comes
        out as if there had been no break. Raises Interrupted once all is saved.
        """
        started = time.monotonic()
        with self.stop.heard():
            if resume is None:
                self._start_records()
                self.facts["before"] = self.evaluate("before training")
                self._save_state()
            else:
                self._restore(resume)
            for epoch in range(self.evaluated, self.plan.schedule.epochs):
                self._train_epoch(epoch)
                self._save_state()
                self._evaluate_epoch(epoch)
        self.accelerator.end_training()
        summary = {
            "before": self.facts["before"],
            "after": self.metrics,
            "best_giou": self.best,
            "best": self.best_at,
            "epochs": self.evaluated,
            "steps": self.step,
            "seconds": round(time.monotonic() - started, 2),
        }
        self._write(SUMMARY, summary)
        return summary

    def _evaluate_epoch(self, epoch: int) -> None:
        after = self.evaluate(f"epoch {epoch + 1}")
        self.evaluated, self.metrics = epoch + 1, after
        if self.best is None or (after["giou"] or 0.0) > self.best:
            self.best = after["giou"] or 0.0
            self.best_at = after | {"epoch": self.evaluated}
            self._save("best")
        self._save_state()

    def _train_epoch(self, epoch: int) -> None:
        total = self.sampler.steps
        done = self.step - epoch * total
        self.sampler.epoch, self.sampler.skip = epoch, done
        self.wrapped.train()
        for number, batches in enumerate(self._effective_batches(epoch), done):
            started = time.monotonic()
            # A run that restarts at an epoch draws the same dropout as one that did not.
            torch.manual_seed(self._step_seed())
            with self._saved_on_shortage():
                result = self._update(batches)
            rate = self.scheduler.get_last_lr()[0]
            if not self.accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            self.step += 1
            row = (asdict(result) if result else {"skipped": self.skipped}) | {
                "step": self.step,
                "epoch": epoch + 1,
                "learning_rate": rate,
                "step_seconds": round(time.monotonic() - started, 4),
            }
            self._record(row)
            loss = f"loss {result.loss:.3f}" if result else "update left out"
            title = f"epoch {epoch + 1}/{self.plan.schedule.epochs}, {loss}"
            self.reporter.progress(title, number + 1, total)
            self._between_steps()

    def _update(self, batches: list[Batch]) -> StepResult | None:
        """One step; None if it was left out for what is not finite, as often as the plan allows."""
        try:
            return training_step(
                self.wrapped, batches, self.optimizer, self.plan, self.accelerator, self.check
            )
        except NotFinite as error:
            allowed = self.plan.schedule.max_skipped_steps
            if self.skipped >= allowed:
                raise NotFinite(
                    f"step {self.step + 1}: {error}\n    hint: look at these samples; a new run "
                    "may lower --set schedule.learning_rate=R, or leave such steps out with "
                    f"--set schedule.max_skipped_steps=N (now {allowed}); nothing was updated"
                ) from None
            self.skipped += 1
            self.reporter.line(
                f"step {self.step + 1} left out ({self.skipped} of {allowed}): {error}"
            )
            return None

    @contextmanager
    def _saved_on_shortage(self) -> Iterator[None]:
        """An out-of-memory error before the update loses no step: nothing has changed yet."""
        try:
            with during("training"):
                yield
        except Exception as error:
            alone = self.accelerator.num_processes == 1
            if alone and is_shortage(error) and UPDATING not in error.__notes__:
                self.optimizer.zero_grad(set_to_none=True)
                self._save_state()
            raise

    def _between_steps(self) -> None:
        """Save where it is time, or where the run is to end. Raises Interrupted."""
        stop, due = self.stop.asked, time.monotonic() - self.saved > 60 * self.keeping.minutes
        due |= self.keeping.steps is not None and self.step - self.saved_step >= self.keeping.steps
        if self.accelerator.num_processes > 1:
            here = torch.tensor([stop, due], dtype=torch.float, device=self.accelerator.device)
            stop, due = (self.accelerator.reduce(here, "sum") > 0).tolist()
        if due or stop:
            self._save_state()
        if stop:
            raise Interrupted(
                f"saved after step {self.step}; lisa-train --resume {argument(self.folder)}"
            )

    def _step_seed(self) -> int:
        rank = self.accelerator.process_index
        return hash((self.plan.seed, self.step, rank)) % (1 << 63)

    def _effective_batches(self, epoch: int) -> Iterator[list[Batch]]:
        """This process's micro-batches, grouped by optimizer step.

        A data worker that was ended from outside costs no step: what it was to bring is made anew.
        """
        while True:
            try:
                yield from self._grouped()
                return
            except WorkerEnded as error:
                self.workers_lost += 1
                if self.workers_lost > MOST_WORKERS_LOST:
                    raise
                what = str(error).splitlines()[0]
                self.reporter.line(f"{what} ({self.workers_lost} of {MOST_WORKERS_LOST})")
                self.sampler.skip = self.step - epoch * self.sampler.steps

    def _grouped(self) -> Iterator[list[Batch]]:
        loader = DataLoader(
            self.train_set,
            batch_sampler=self.sampler,
            num_workers=self.plan.workers,
            pin_memory=self.plan.device == "cuda",
            collate_fn=partial(collate, tokenizer=self.tokenizer, step=length_step(self.plan)),
            worker_init_fn=end_with_run,
        )
        group: list[Batch] = []
        for batch in told_plainly(loader, self.folder):
            group.append(batch)
            if len(group) == self.plan.accumulation:
                yield group
                group = []

    def evaluate(self, title: str) -> dict[str, Any]:
        """gIoU and cIoU over the validation split, each process its share."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = range(rank, len(self.val_set), processes)
        heeding = Reporter(self.reporter.line, self._heeding)
        with during("evaluating"):
            scores = evaluate(
                self.model, self.val_set, list(share), self.tokenizer, self.accelerator, heeding
            )
        rows = scores.rows()
        if processes > 1:
            from accelerate.utils import gather_object

            rows = gather_object(rows)
        whole = MaskScores.from_rows(rows)
        result = {"giou": whole.giou, "ciou": whole.ciou, "images": whole.count}
        self._record({"evaluation": title, "step": self.step} | result)
        self.reporter.line(f"{title}: {describe(result)}")
        return result

    def _heeding(self, what: str, done: int, total: int) -> None:
        """Progress of an evaluation. Raises Interrupted: what came before it is saved."""
        if self.stop.asked:
            raise Interrupted(
                f"ended while {what}; all before it is saved; "
                f"lisa-train --resume {argument(self.folder)}"
            )
        self.reporter.progress(what, done, total)

    def _save(self, name: str) -> None:
        """A checkpoint to answer with."""
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / name, self.model, self.plan, self._facts())
        self.accelerator.wait_for_everyone()

    def _save_state(self) -> None:
        """A checkpoint to resume from; the one before is kept."""
        self.saves += 1
        if self.accelerator.is_main_process:
            force(self.folder / RECORDS)  # the state counts on them
            checkpoint.save(
                self.folder / LAST, self.model, self.plan, self._facts() | {"save": self.saves},
                self._state(), self.keeping.earlier(self.folder),
            )  # fmt: skip
        self.saved, self.saved_step = time.monotonic(), self.step
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        return {"step": self.step, "metrics": self.metrics, **self.facts, **peaks()}

    def _state(self) -> dict[str, Any]:
        """All that the next step depends on beside the trained tensors.

        Not the random numbers: every step and every sample draws its own, from the plan's seed.
        """
        scheduler = {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        scaler = self.accelerator.scaler
        return {
            "step": self.step, "evaluated": self.evaluated, "best": self.best,
            "skipped": self.skipped, "best_at": self.best_at,
            "metrics": self.metrics, "before": self.facts["before"],
            "records": (self.folder / RECORDS).stat().st_size,
            "optimizer": self.optimizer.optimizer.state_dict(), "scheduler": scheduler,
            "scaler": scaler.state_dict() if scaler else {},
        }  # fmt: skip

    def _restore(self, folder: Path) -> None:
        """Take up a checkpoint's state; records after it go.

        Raises CheckpointError, and CannotResume where the plan or the base weights are others.
        """
        levers = check_plan(self.plan, Plan.read(folder / "plan.json"))
        facts = checkpoint.read_facts(folder)
        if facts.get("base") not in (None, self.facts["base"]):
            raise CannotResume(
                f"{folder}: was trained over base weights {facts['base']}, here are "
                f"{self.facts['base']}\n    hint: put those back, or begin a new run"
            )
        with during("loading"), checkpoint.taken_up(folder):
            self._take_up(folder)
        self.saves = facts.get("save", 0)
        self._show_records()
        self.reporter.line(f"continuing from {folder} after step {self.step}")
        for change in [*levers, *changes(facts, versions())]:
            self.reporter.line(f"note: {change}: the rest may differ in the last bits")

    def _take_up(self, folder: Path) -> None:
        state = checkpoint.load_state(folder)
        checkpoint.load(folder, self.model)
        self.step, self.evaluated, self.best = (state[k] for k in ("step", "evaluated", "best"))
        self.skipped, self.saved_step = state.get("skipped", 0), self.step
        self.best_at = state.get("best_at")
        self.metrics, self.facts["before"] = state["metrics"], state["before"]
        optimizer = state["optimizer"]
        optimizer["state"] = {int(number): of for number, of in optimizer["state"].items()}
        self.optimizer.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(state["scheduler"] | {"lr_lambdas": [None]})
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.wait_for_everyone()  # all have read what they need
        if self.accelerator.is_main_process:
            tidy(self.folder, folder, self.keeping.earlier(self.folder))
            self._cut_records(state["records"])

    def _cut_records(self, size: int) -> None:
        """Take off what came after the checkpoint; where lines are missing, a torn one as well."""
        path = self.folder / RECORDS
        kept = path.read_bytes()[:size] if path.exists() else b""
        if len(kept) < size:
            kept = kept[: kept.rfind(b"\n") + 1]
            self.reporter.line(f"{path}: records of some steps are lost")
        write_whole(path, kept)

    def _start_records(self) -> None:
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / RECORDS, "")
        self._show_records()
        self._write("versions.json", versions())

    def _write(self, name: str, document: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            write_whole(self.folder / name, json.dumps(document, indent=2) + "\n")

    def _record(self, row: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        with (self.folder / RECORDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        """A record's numbers in TensorBoard."""
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        self.accelerator.log(numbers, step=row["step"])

    def _show_records(self) -> None:
        """Begin TensorBoard anew from the records: what a kill has done twice is shown once."""
        folder = self.folder / "tensorboard"
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.init_trackers(folder.name)
        if self.accelerator.is_main_process:
            for line in (self.folder / RECORDS).read_text(encoding="utf-8").splitlines():
                self._show(json.loads(line))
