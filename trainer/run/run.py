"""The training run: caches, model, epochs, evaluation, checkpoints and the run folder."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from profiles.environment import own_card
from profiles.plan import Plan
from profiles.text import argument, counted, one_line
from trainer.batch import Batch
from trainer.data.formats.reasonseg import Item
from trainer.data.micro_batches import MicroBatches
from trainer.data.mixture import MixedSets
from trainer.hardware import free_bytes, hardware, memory_bytes, peaks, versions
from trainer.model.build import build, check_compiler, check_products, read_tokenizer
from trainer.model.footprint import check_fits
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.trained import GradientCheck, trained_names
from trainer.model.weights import weight_source
from trainer.parallel.accelerator import between_processes, make_accelerator
from trainer.parallel.lost import read_together, wait_no_longer
from trainer.parallel.ranks import Ranks
from trainer.phase import during
from trainer.reporter import Reporter
from trainer.run.expected import NOTHING, Expected, beside_forecast
from trainer.run.folder import RECEIPTS, SUMMARY
from trainer.run.host_memory import host_memory
from trainer.run.progress import unless_not_finite
from trainer.run.receipts import Receipts
from trainer.run.records import Records
from trainer.run.sample_sets import sample_sets
from trainer.run.started import USUAL, Keeping
from trainer.run.state import State
from trainer.run.step_batches import StepBatches
from trainer.run.stop import Stop
from trainer.run.time_left import TimeLeft
from trainer.run.trackers import made_for
from trainer.run.validation import describe, evaluate_together
from trainer.step import StepResult, make_optimizer, training_step


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved; the message says how to resume it."""


def tokenizer_for(plan: Plan) -> ConversationTokenizer:
    """The plan's tokenizer. Raises an error if the card or its compiler cannot run the plan.

    A missing card is reported before missing weights, so that nobody fetches gigabytes in vain.
    """
    free = free_bytes(plan) if plan.device == "cuda" else None
    tokenizer = read_tokenizer(plan)
    if free is not None:
        if plan.compile:
            check_compiler()
        check_products(plan, own_card())
        check_fits(plan, tokenizer, *free)
    return tokenizer


def make_scheduler(optimizer: torch.optim.Optimizer, plan: Plan, epoch_steps: int) -> Any:
    """The learning rate's schedule, for epochs of `epoch_steps` optimizer steps."""
    schedule, total = plan.schedule, epoch_steps * plan.schedule.epochs
    name = "constant_with_warmup" if schedule.shape == "constant" else schedule.shape
    return get_scheduler(name, optimizer, schedule.warmup(total), total)


def steps_line(plan: Plan, epoch_steps: int) -> str:
    """How long a run is, and how much of it is warm-up."""
    steps = epoch_steps * plan.schedule.epochs
    warmup = plan.schedule.warmup(steps)
    rising = f"{warmup} of them as warm-up" if warmup else "without warm-up"
    return f"{counted(steps, 'optimizer step')}, {rising}"


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a process's dropout in a step: the same if the run was resumed."""
    return hash((seed, step, rank)) % (1 << 63)


def run_facts(plan: Plan, train: int, val: int, device: torch.device) -> dict[str, Any]:
    """What every checkpoint records: samples, base weights, hardware and versions."""
    return {
        "data": {"train": train, "val": val},
        "base": weight_source(plan).fingerprint,
        "hardware": hardware(device),
        "versions": versions(),
    }


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
        expected: Expected = NOTHING,
    ) -> None:
        self.stop, self.time_left = Stop(), TimeLeft(expected.seconds)
        self.plan, self.val, self.folder, self.reporter = plan, val, folder, reporter
        self.expected = expected
        self.accelerator = make_accelerator(plan, made_for(folder, keeping.trackers))
        self.ranks = Ranks.here()
        neighbours, alone = self.ranks.neighbours(), plan.processes == 1
        self._read = torch.Tensor.tolist if alone else partial(read_together, neighbours)
        self.tokenizer = tokenizer_for(plan)
        display = replace(reporter, progress=self._progress_of_features)
        self.train_set, self.val_set = sample_sets(
            plan, train, val, self.tokenizer, cache_root, self.accelerator, self.ranks, display
        )
        with during("loading"):
            memory = host_memory(plan, self.ranks)
            self.model = build(plan, self.tokenizer, self.accelerator.device, memory=memory)
        self.receipts = Receipts(plan, self.model)
        self.check = GradientCheck(self.model, trained_names(self.model, plan))
        optimizer = make_optimizer(self.model, plan)
        sampler = MicroBatches(self.train_set, plan, self.accelerator.process_index)
        self.epoch_steps = sampler.steps
        self.batches = StepBatches(self.train_set, sampler, plan, folder, reporter.line)
        # First the schedule, which marks the optimizer's step: for fp16 accelerate keeps the step
        # that it is given, and without the mark torch warns of a wrong order.
        self.scheduler = make_scheduler(optimizer, plan, self.epoch_steps)
        self.wrapped, self.optimizer = between_processes(self.accelerator, self.model, optimizer)
        self.records = Records(folder, plan, self.accelerator, reporter.line)
        self.state = State(
            folder, plan, keeping, self.accelerator, self.records, self.model, self.optimizer,
            self.scheduler, run_facts(plan, len(train), len(val), self.accelerator.device),
        )  # fmt: skip

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.state.progress.step

    def start_from(self, folder: Path) -> None:
        """Load the trained tensors of an adapter's folder. Raises AdapterError."""
        from trainer.run.start_from_adapter import load_adapter

        with during("loading"):
            count = load_adapter(folder, self.plan, self.model, self.tokenizer.new_ids)
        self.reporter.line(f"starting from {one_line(folder)}: {counted(count, 'tensor')}")

    def train(self, resume: Path | None = None) -> dict[str, Any]:
        """Evaluate, then train and evaluate epoch after epoch; returns the summary.

        With a checkpoint to `resume` from, nothing is trained twice, and the result is the same as
        without a break. Raises Interrupted once all is saved.
        """
        started = time.monotonic()
        wait_no_longer()
        with self.stop.listening():
            if resume is None:
                self.records.start()
                self.records.write("versions.json", versions())
                self.reporter.line(steps_line(self.plan, self.epoch_steps))
                self.state.progress.before = self.evaluate("before training")
                self.state.save()
            else:
                self.state.restore(resume, self.reporter.line)
            for epoch in range(self.state.progress.evaluated, self.plan.schedule.epochs):
                if self.state.progress.out_of_patience(self.plan.schedule.patience):
                    break
                self._train_epoch(epoch)
                self.state.save()
                self._evaluate_epoch(epoch)
        self.accelerator.end_training()
        summary = self._summary(time.monotonic() - started, resume is not None)
        self.records.write(SUMMARY, summary)
        return summary

    def _summary(self, seconds: float, resumed: bool) -> dict[str, Any]:
        early = self.state.progress.evaluated < self.plan.schedule.epochs
        whole = None if resumed else round(time.monotonic() - self.time_left.began, 2)
        self.receipts.read(self.folder / RECEIPTS)
        both, exceeded = beside_forecast(self.expected, whole, peaks())
        return self.state.progress.summary() | {
            "stopped_by_patience": self.plan.schedule.patience if early else None,
            "receipts": self.receipts.document(),
            **both,
            "warnings": [*self.receipts.warnings(), *exceeded],
            "seconds": round(seconds, 2),
        }

    def _evaluate_epoch(self, epoch: int) -> None:
        if self.state.progress.add_evaluation(self.evaluate(f"epoch {epoch + 1}"), epoch + 1):
            self.state.save_best()
        self.state.save()

    def _train_epoch(self, epoch: int) -> None:
        progress, done = self.state.progress, self.step - epoch * self.epoch_steps
        self.wrapped.train()
        last = time.monotonic()
        for number, batches in enumerate(self.batches.of_epoch(epoch, done), done + 1):
            started = time.monotonic()
            torch.manual_seed(step_seed(self.plan.seed, self.step, self.accelerator.process_index))
            with self.state.saved_on_failure():
                result = self._step_with_receipts(batches)
            batches.clear()  # frees them: the next batches are pinned in their place
            rate = self.scheduler.get_last_lr()[0]
            if not self.accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            progress.step += 1
            row = (asdict(result) if result else {"skipped": progress.skipped}) | {
                "step": progress.step,
                "epoch": epoch + 1,
                "learning_rate": rate,
                "step_seconds": round(time.monotonic() - started, 4),
                "memory_bytes": memory_bytes(self.accelerator.device),
            }
            self.records.append(row)
            loss = f"loss {result.loss:.3f}" if result else "update left out"
            title = f"epoch {epoch + 1}/{self.plan.schedule.epochs}, {loss}"
            self.time_left.step_took(time.monotonic() - last)
            last = time.monotonic()
            self._show_left()
            self.reporter.progress(title, number, self.epoch_steps)
            self._between_steps()

    def _step_with_receipts(self, batches: list[Batch]) -> StepResult | None:
        """A step; the first one's receipts are kept in the run folder."""
        if self.receipts.rows:
            return self._step(batches)
        with self.receipts.looking_at(self.optimizer.optimizer):
            result = self._step(batches)
        self.records.write(RECEIPTS, {"receipts": self.receipts.document()})
        return result

    def _step(self, batches: list[Batch]) -> StepResult | None:
        """One step; None if it was skipped because a number was not finite, as the plan allows."""
        return unless_not_finite(
            lambda: training_step(
                self.wrapped, batches, self.optimizer, self.plan, self.accelerator, self.check,
                self._read,
            ),
            self.state.progress, self.plan.schedule.max_skipped_steps, self.reporter.line,
        )  # fmt: skip

    def _between_steps(self) -> None:
        """Save if a checkpoint is due or the run is to stop. Raises Interrupted."""
        stop, due = self.stop.asked, self.state.due()
        if self.accelerator.num_processes > 1:
            here = torch.tensor([stop, due], dtype=torch.float)  # on the CPU: see total_of
            with self.state.saved_on_failure():
                stop, due = (self.accelerator.reduce(here, "sum") > 0).tolist()
        if due or stop:
            self.state.save()
        if stop:
            raise Interrupted(
                f"saved after step {self.step}; lisa-train --resume {argument(self.folder)}"
            )

    def evaluate(self, title: str) -> dict[str, Any]:
        """gIoU and cIoU over the validation split; each process evaluates a share."""
        reporter = Reporter(self.reporter.line, self._progress_or_stop)
        started = time.monotonic()
        with during("evaluating"):
            scores = evaluate_together(
                self.model, self.val_set, self.tokenizer, self.accelerator, reporter
            )
        self.time_left.evaluation = time.monotonic() - started
        result = {"giou": scores.giou, "ciou": scores.ciou, "images": scores.count}
        self.records.append({"evaluation": title, "step": self.step} | result)
        self.reporter.line(f"{title}: {describe(result)}")
        return result

    def _progress_or_stop(self, what: str, done: int, total: int) -> None:
        """Show the progress of an evaluation. Raises Interrupted: all before it is saved."""
        if self.stop.asked:
            raise Interrupted(
                f"ended while {what.partition(',')[0]}; all before it is saved; "
                f"lisa-train --resume {argument(self.folder)}"
            )
        self._show_left(1 - done / max(1, total))
        self.reporter.progress(what, done, total)

    def _progress_of_features(self, what: str, done: int, total: int) -> None:
        """Show the progress of a feature cache, before anything else is known."""
        self.reporter.left(self.time_left.seconds(1, 1))
        self.reporter.progress(what, done, total)

    def _show_left(self, evaluating: float | None = None) -> None:
        """Show what is left of the run; `evaluating`: the share left of an evaluation's own."""
        epochs = self.plan.schedule.epochs
        left = self.state.progress.left(epochs, self.epoch_steps, evaluating)
        self.reporter.left(self.time_left.seconds(*left))
