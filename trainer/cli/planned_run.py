"""A run before it starts: its plan, folder and data, and the files that `--resume` needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.files import read_object, write_whole
from profiles.places import usable
from profiles.streams import tell
from profiles.text import argument, counted
from trainer.process import import_libraries, use_environment
from trainer.run.expected import NOTHING, Expected
from trainer.run.folder import is_complete, reopen

ADVICE = "advice.json"

if TYPE_CHECKING:
    from advisor.advice import Advice
    from profiles.plan import Plan
    from trainer.data.broken import SkippedEntries
    from trainer.data.findings import Finding
    from trainer.data.formats.reasonseg import Item
    from trainer.data.mixture import MixedSets
    from trainer.run.started import Started


@dataclass(frozen=True)
class PlannedRun:
    """A run to start: its plan, its folder, and all that `--resume` will need."""

    plan: Plan
    folder: Path
    started: Started
    advice: Advice | None = None
    resumes: bool = False
    changed: Plan | None = None  # what a resume records as the run's plan, if that changes

    @property
    def expected(self) -> Expected:
        """The advice's forecast of this run; empty if the plan is not the advised one.

        Processes that lisa-train starts read what `write_start` has written. The time of a resumed
        run is unknown.
        """
        from profiles.plan import Plan

        try:
            document = read_object(self.folder / ADVICE)
            if Plan.parse(document["plan"]) != self.plan:
                return NOTHING
            seconds = None if self.resumes else _number(document, "duration", "seconds")
            pool = _number(document, "needs", "bytes")
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return NOTHING
        return Expected(seconds, None if pool is None else int(pool))


def _number(document: Any, table: str, name: str) -> float | None:
    """A number of a table that may be null."""
    found = (document[table] or {}).get(name)
    return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True)
class Data:
    """Training and validation data of a run, and the broken entries that were left out."""

    train: list[Item] | MixedSets
    val: list[Item]
    left_out: tuple[str, ...]


def read_data(run: PlannedRun) -> Data:
    """The data to train and validate on, without broken entries. Raises DataError.

    On resume exactly those entries are left out that the run left out when it began.
    """
    from trainer.data.broken import LIST, SkippedEntries, left_out_line, write_list

    data = run.started.data
    known = None if run.started.left_out is None else frozenset(run.started.left_out)
    leave = SkippedEntries(run.started.skip_broken, known=known, root=data)
    train, val = _both(data, run.plan, leave, run.resumes)
    if leave.left_out and known is None:
        listed = run.folder / LIST
        run.folder.mkdir(parents=True, exist_ok=True)
        write_list(listed, leave.left_out)
        tell(left_out_line(leave.left_out, listed))
    return Data(train, val, tuple(sorted(leave.places())))


def refuse_early(plan: Plan, environment: Mapping[str, str], started: Started) -> None:
    """Refuse what a start would refuse, before a dry run of the plan takes minutes.

    Where broken entries may be left out, every picture is decoded: that is done once, at the start.
    Raises DataError, CannotResume, WeightsError, AdapterError.
    """
    from trainer.data.broken import SkippedEntries

    use_environment(plan, environment)
    if not started.skip_broken:
        train, val = _both(started.data, plan, SkippedEntries(root=started.data))
        check_features(plan, Data(train, val, ()), started.cache)
    import_libraries()
    from trainer.model.weights import weight_source

    weight_source(plan)
    if started.adapter is not None:
        from trainer.run.start_from_adapter import check_adapter

        check_adapter(started.adapter, plan)


def check_features(plan: Plan, data: Data, cache: Path) -> None:
    """Raise CannotResume if features would have to be built in a folder that takes no files.

    For a mixture only the validation pictures are checked: the training pictures are drawn later.
    """
    if usable(cache):
        return
    import_libraries()
    from trainer.data.samples import image_paths
    from trainer.run.feature_caches import lacking
    from trainer.run.started import CannotResume

    train = data.train if isinstance(data.train, list) else []
    if without := lacking(plan, image_paths(train, data.val), cache):
        raise CannotResume(
            f"--cache-dir {argument(cache)}: cannot be written, and lacks features of "
            f"{counted(len(without), 'picture')}, such as {without[0].name}\n"
            "    hint: name a folder that can be written, or one with all features"
        )


def _both(
    data: Path, plan: Plan, leave: SkippedEntries, resumes: bool = False
) -> tuple[list[Item] | MixedSets, list[Item]]:
    """The training and the validation data. Raises DataError with the findings of both."""
    from trainer.data.broken import hint
    from trainer.data.findings import DataError
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.mixture import read_training

    findings: list[Finding] = []
    train: list[Item] | MixedSets = []
    val: list[Item] = []
    try:
        train = read_training(data, plan, leave)
    except DataError as error:
        findings += error.findings
    try:
        val = read_split(data, "val", plan.max_val_samples, leave)
    except DataError as error:
        findings += error.findings
    if not findings:
        return train, val
    findings = list(dict.fromkeys([*findings, *leave.left_out]))
    fixes = hint(findings, leave.most, decoded=leave.most > 0)
    if resumes and fixes:
        fixes = ["hint: fix them, because a run continues with the data that it started with"]
    raise DataError(findings, fixes)


def write_start(run: PlannedRun) -> None:
    """Write what `--resume` needs into the run folder, once nothing can be refused any more."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.resumes and is_complete(run.folder):  # it becomes longer
        reopen(run.folder)  # first: killed in between, the run is complete again without a step
    plan = run.changed if run.resumes else run.plan
    if plan is not None:
        write_whole(run.folder / "plan.json", plan.to_json())
    if run.advice is not None:
        write_whole(run.folder / ADVICE, run.advice.model_dump_json(indent=2) + "\n")
    run.started.write(run.folder)  # last: with run.json the run exists
