"""The micro-batches of each optimizer step, from data workers that may end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from profiles.plan import Plan
from trainer.batch import Batch
from trainer.data.micro_batches import MicroBatch, MicroBatches
from trainer.data.samples import Sample, SampleSet, collate, length_step
from trainer.run.workers import WorkerEnded, end_with_run, without_traceback

MOST_WORKERS_LOST = 2  # in one process: after that, something is wrong that stays


class Rows(Dataset[list[Sample]]):
    """The samples of each micro-batch."""

    def __init__(self, samples: SampleSet, sampler: MicroBatches) -> None:
        self.samples, self.sampler = samples, sampler

    def __getitem__(self, micro_batch: MicroBatch) -> list[Sample]:
        return [self.samples[visit] for visit in self.sampler.rows(micro_batch)]


class StepBatches:
    """This process's micro-batches of one epoch, grouped by optimizer step."""

    def __init__(
        self,
        samples: SampleSet,
        sampler: MicroBatches,
        plan: Plan,
        folder: Path,
        report: Callable[[str], None],
    ) -> None:
        self.samples, self.sampler, self.plan = samples, sampler, plan
        self.folder, self.report = folder, report
        self.workers_lost = 0

    def of_epoch(self, epoch: int, done: int) -> Iterator[list[Batch]]:
        """The epoch's groups after the first `done`.

        A data worker that was ended from outside costs no step: its batches are made again.
        """
        self.sampler.epoch = epoch
        while True:
            self.sampler.skip = done
            try:
                for group in self._grouped():
                    yield group
                    done += 1
                return
            except WorkerEnded as error:
                self.workers_lost += 1
                if self.workers_lost > MOST_WORKERS_LOST:
                    raise
                what = str(error).splitlines()[0]
                self.report(f"{what} ({self.workers_lost} of {MOST_WORKERS_LOST})")

    def _grouped(self) -> Iterator[list[Batch]]:
        tokenizer = self.samples.tokenizer
        loader = DataLoader(
            Rows(self.samples, self.sampler),
            sampler=self.sampler,
            batch_size=None,
            num_workers=self.plan.workers,
            pin_memory=self.plan.device == "cuda",
            collate_fn=partial(collate, tokenizer=tokenizer, step=length_step(self.plan)),
            worker_init_fn=end_with_run,
        )
        batches = without_traceback(loader, self.folder)
        sampler = self.sampler
        for rows in islice(sampler.of_epoch(sampler.epoch), sampler.skip, None):
            yield list(islice(batches, sampler.count(len(rows))))
