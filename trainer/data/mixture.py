"""Training samples drawn from several data sets, as in LISA's recipe (Lai et al., 2023).

A sample is drawn in three steps: a kind of data set by the plan's rates, one of the kind's data
sets, one of its pictures; the last two uniformly.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from profiles.plan import Plan
from trainer.data.broken import SkippedEntries, may_be_left_out
from trainer.data.findings import DataError, Finding, Report
from trainer.data.formats import refer_seg, sem_seg, vqa
from trainer.data.formats.reasonseg import (
    Item,
    ReasoningPicture,
    Summary,
    by_picture,
    read_split,
)
from trainer.data.formats.reasonseg import check as check_reason_seg
from trainer.data.images import whole_size_of
from trainer.data.pictures import DataSet, Picture, Scanned
from trainer.data.threads import in_threads
from trainer.reporter import Progress

PLACES = {
    "refer_seg": "refer_seg/{refclef,refcoco,refcoco+,refcocog}",
    "sem_seg": "ade20k or sem_seg/NAME",
    "vqa": "vqa/NAME.json",
}


def _read_reason_seg(root: Path, limit: int | None) -> Scanned:
    try:
        return [_reason_seg(read_split(root, "train", limit))], []
    except DataError as error:
        return [], list(error.findings)


def _reason_seg(items: Iterable[Item]) -> DataSet:
    return DataSet("ReasonSeg", [ReasoningPicture(item) for item in items])


READERS: dict[str, Callable[[Path, int | None], Scanned]] = {
    "reason_seg": _read_reason_seg,
    "refer_seg": refer_seg.read,
    "sem_seg": sem_seg.read,
    "vqa": vqa.read,
}


class MixedSets:
    """Data sets by kind, each kind with its rate; an epoch draws `samples` of them."""

    def __init__(
        self, kinds: Mapping[str, Sequence[DataSet]], rates: Mapping[str, float], samples: int
    ) -> None:
        self.kinds = list(kinds.values())
        self.samples = samples
        bounds = list(accumulate(rates[kind] for kind in kinds))
        self.bounds = [bound / bounds[-1] for bound in bounds]

    def __len__(self) -> int:
        return self.samples

    def draw(self, rng: np.random.Generator) -> Picture:
        """One picture."""
        sets = self.kinds[bisect(self.bounds, rng.random())]
        pictures = sets[int(rng.integers(len(sets)))].pictures
        return pictures[int(rng.integers(len(pictures)))]


def generator_of(plan: Plan, epoch: int, index: int) -> np.random.Generator:
    """The random generator of one visit: the same in every worker and process."""
    return np.random.default_rng([plan.seed, epoch, index])


def read_training(
    root: Path, plan: Plan, leave: SkippedEntries | None = None
) -> list[Item] | MixedSets:
    """What the plan trains on: ReasonSeg's training split, or its mixture.

    Raises DataError with all findings about the data sets whose rate is not 0. `leave` accepts
    broken entries: if it may accept any, every picture is decoded and every mask painted once,
    unless it knows the broken ones from an earlier start.
    """
    if plan.mixture.reason_seg_alone:
        return read_split(root, "train", plan.max_train_samples, leave)
    rates = {kind: rate for kind in READERS if (rate := getattr(plan.mixture, kind))}
    kinds: dict[str, list[DataSet]] = {}
    findings: list[Finding] = []
    for kind in rates:
        if kind == "reason_seg" and leave is not None:
            items = read_split(root, "train", plan.max_train_samples, leave)
            kinds[kind] = [_reason_seg(items)]
            continue
        kinds[kind], broken = READERS[kind](root, plan.max_train_samples)
        if leave is not None and may_be_left_out(broken, leave.most):
            if leave.decodes:
                kinds[kind], unusable = sound(kinds[kind])
                broken = [*broken, *unusable]
            elif leave.known:
                kinds[kind] = [_without(data_set, leave) for data_set in kinds[kind]]
            findings += [*broken, *_nothing(root, kind, kinds[kind])]
        else:
            findings += broken or _nothing(root, kind, kinds[kind])
    (leave or SkippedEntries()).accept(findings)
    if plan.questions_per_picture > 1 and "reason_seg" in kinds:
        kinds["reason_seg"] = list(map(_by_picture, kinds["reason_seg"]))
    return MixedSets(kinds, rates, plan.mixture.samples)


def _by_picture(data_set: DataSet) -> DataSet:
    """ReasonSeg with all items about a picture together."""
    items = (one.item for one in data_set.pictures if isinstance(one, ReasoningPicture))
    return replace(data_set, pictures=by_picture(items))


def _nothing(root: Path, kind: str, sets: Sequence[DataSet]) -> list[Finding]:
    """Findings about a kind without data, and about data sets without a picture."""
    report = Report(root)
    if not sets:
        fix = f"unpack a data set there, or --set mixture.{kind}=0"
        report.add(f"mixture.{kind}", "no data set", PLACES.get(kind, "ReasonSeg/train"), fix)
    for found in sets:
        if not found.pictures:
            fix = "annotate one, or take the data set out"
            report.add(found.name, "no picture with an annotation", "one or more", fix)
    return report.findings


def _without(data_set: DataSet, leave: SkippedEntries) -> DataSet:
    """The data set without the pictures that an earlier start left out."""
    kept = [picture for picture in data_set.pictures if not leave.knows(picture.where)]
    return replace(data_set, pictures=kept)


def sound(
    sets: Sequence[DataSet], progress: Progress | None = None
) -> tuple[list[DataSet], list[Finding]]:
    """The data sets without pictures that cannot be read or painted, and the findings."""
    kept: list[DataSet] = []
    findings: list[Finding] = []
    for data_set in sets:
        pictures: list[Picture] = []
        both = zip(data_set.pictures, in_threads(_problems, data_set.pictures), strict=True)
        for done, (picture, wrong) in enumerate(both, 1):
            findings += wrong
            if not wrong:
                pictures.append(picture)
            if progress is not None:
                progress(f"checking {data_set.name}", done, len(data_set.pictures))
        kept.append(replace(data_set, pictures=pictures))
    return kept, findings


def check_data(root: Path) -> tuple[list[DataSet], list[Finding]]:
    """Every data set beside ReasonSeg that is there, and every problem of all, ReasonSeg's too."""
    return check(root)[1:]


def check(
    root: Path, progress: Progress | None = None
) -> tuple[Summary, list[DataSet], list[Finding]]:
    """ReasonSeg's counts, every data set beside it that is there, and every problem of all.

    Every picture is decoded and every mask painted.
    """
    summary, findings = check_reason_seg(root, progress)
    found: list[DataSet] = []
    for kind in PLACES:
        sets, broken = READERS[kind](root, None)
        findings += broken
        found += sets
        if not broken and sets:
            findings += _nothing(root, kind, sets)
    found, unusable = sound(found, progress)
    return summary, found, findings + unusable


def nothing_left(summary: Summary) -> str:
    """The splits that would have no valid item left without the broken ones; empty for none."""
    empty = [split for split, counts in summary.items() if not counts]
    return f"no valid item would be left in {' and '.join(empty)}" if empty else ""


def _problems(picture: Picture) -> Sequence[Finding]:
    try:
        height, width = whole_size_of(picture.image_path)
        for paint in picture.all_masks():
            paint(height, width)
    except DataError as error:
        # Each of these findings can be avoided by leaving the picture out.
        return [replace(one, entry=picture.where) for one in error.findings]
    return ()
