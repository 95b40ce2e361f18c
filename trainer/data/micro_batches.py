"""Which rows make each optimizer step, and each process's micro-batches of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, count, cycle, islice, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from profiles.batches import passes
from profiles.plan import Plan
from trainer.data.samples import Visit, padded_length


class Visited(Protocol):
    """What the order of a training depends on."""

    epoch_questions: int
    drawn: bool

    def __len__(self) -> int:
        """Pictures to visit."""

    def questions(self, lap: int, index: int) -> int:
        """How many questions a visit can give: the same in every lap, unless pictures are drawn."""

    def length(self, visit: Visit) -> int:
        """Tokens of its row."""


class MicroBatch(NamedTuple):
    """One of a process's micro-batches of a step, by its number among them."""

    step: list[Visit]  # all rows of the step
    number: int


class MicroBatches:
    """Sampler: the micro-batches of one process, optimizer step after optimizer step.

    Every step asks `effective_batch` questions. An epoch asks as many as there are samples, rounded
    up to whole steps. Neither depends on how many questions share a picture. Each pass over the
    pictures is one seeded permutation. With one question a picture, an epoch is one pass, filled up
    from its start; with several, the next epoch goes on where the last one stopped. The rows of a
    step depend neither on the micro-batch nor on the number of processes. Within a step, rows of
    similar length form a micro-batch, so that there is little padding and processes get about equal
    numbers of tokens.
    """

    def __init__(self, samples: Visited, plan: Plan, rank: int = 0) -> None:
        self.samples = samples
        self.plan = plan
        self.rank = rank
        self.epoch = 0
        self.skip = 0  # optimizer steps of the epoch that are done already
        self._cut: tuple[list[Visit], list[list[Visit]]] = [], []  # a step, and what `rows` made

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.samples.epoch_questions // self.plan.effective_batch)

    def visits(self) -> Iterator[Visit]:
        """Every row of the training."""
        for epoch in range(self.plan.schedule.epochs):
            yield from chain.from_iterable(self.of_epoch(epoch))

    def of_epoch(self, epoch: int) -> Iterator[list[Visit]]:
        """The rows of each optimizer step, before they are cut into micro-batches."""
        one_pass = self.plan.questions_per_picture == 1 or self.samples.drawn
        places = cycle(self._pass(epoch)) if one_pass else self._after(epoch)
        for _ in range(self.steps):
            rows: list[Visit] = []
            left = self.plan.effective_batch
            while left:
                lap, picture = next(places)
                given = min(left, self.samples.questions(lap, picture))
                rows.append(Visit(lap, picture, given))
                left -= given
            yield rows

    def _pass(self, lap: int) -> list[tuple[int, int]]:
        """Every picture once."""
        order = np.random.default_rng([self.plan.seed, lap]).permutation(len(self.samples))
        return [(lap, picture) for picture in order.tolist()]

    def _after(self, epochs: int) -> Iterator[tuple[int, int]]:
        """Pictures after those of `epochs` epochs, pass after pass."""
        each = sum(self.samples.questions(0, picture) for picture in range(len(self.samples)))
        first, asked = divmod(epochs * self.steps * self.plan.effective_batch, each)
        for lap, picture in chain.from_iterable(map(self._pass, count(first))):
            if asked > 0:
                asked -= self.samples.questions(lap, picture)
            else:
                yield lap, picture

    def count(self, rows: int) -> int:
        """How many micro-batches this process makes of a step's `rows`."""
        return sum(1 for part in self._parts(rows)[self.rank :: self.plan.processes] if part)

    def _parts(self, rows: int) -> list[range]:
        """A step's rows, in order of length, cut into the micro-batches of all processes."""
        processes = self.plan.processes
        cuts = processes * passes(rows, self.plan.micro_batch, processes)
        # The first parts are the fuller ones, so that every process gets a row.
        ends = accumulate((rows + cuts - 1 - n) // cuts for n in range(cuts))
        return [range(*pair) for pair in pairwise(chain([0], ends))]

    def _mine(self, lengths: Sequence[int]) -> list[range]:
        """This process's micro-batches of rows of such lengths, in order of length.

        All processes wait for the slowest one. So neighbouring micro-batches, one for each process,
        are dealt out from the longest rows on: the process with the fewest tokens so far gets the
        largest.
        """

        def tokens(part: range) -> int:
            return len(part) * padded_length(lengths[part[-1]], self.plan) if part else 0

        parts, processes = self._parts(len(lengths)), self.plan.processes
        loads, mine = [0] * processes, []
        for start in range(len(parts) - processes, -1, -processes):
            order = sorted(range(processes), key=loads.__getitem__)
            largest_first = sorted(parts[start : start + processes], key=tokens, reverse=True)
            for rank, part in zip(order, largest_first, strict=True):
                loads[rank] += tokens(part)
                if rank == self.rank and part:
                    mine.append(part)
        return mine[::-1]

    def __iter__(self) -> Iterator[MicroBatch]:
        for rows in islice(self.of_epoch(self.epoch), self.skip, None):
            yield from (MicroBatch(rows, number) for number in range(self.count(len(rows))))

    def rows(self, micro_batch: MicroBatch) -> list[Visit]:
        """The rows of one micro-batch.

        Called in a data worker, since finding the lengths of a step's rows takes milliseconds and
        the GPU would wait for them between two steps. A worker does it once for each step.
        """
        if self._cut[0] != micro_batch.step:
            self._cut = micro_batch.step, self._cut_up(micro_batch.step)
        return self._cut[1][micro_batch.number]

    def _cut_up(self, rows: list[Visit]) -> list[list[Visit]]:
        """This process's micro-batches of a step."""
        lengths = np.array([self.samples.length(visit) for visit in rows])
        order = np.argsort(lengths, kind="stable")
        parts = self._mine(lengths[order].tolist())
        return [[rows[order[place]] for place in part] for part in parts]
