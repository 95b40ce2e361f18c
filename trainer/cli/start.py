"""A training, once its plan is final: in one process or several; new, resumed, or recovered."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from profiles.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY, fail
from profiles.files import held, sweep, write_whole
from profiles.streams import tell
from profiles.text import argument, counted, operand
from trainer.cli.console import LineProgress
from trainer.cli.one_process import train_here
from trainer.cli.planned_run import Data, PlannedRun, check_features, read_data, write_start
from trainer.process import import_libraries, use_environment
from trainer.run.folder import FILES, RECORD, is_complete

if TYPE_CHECKING:
    from profiles.plan import Plan
    from trainer.run.started import Started


def start_run(run: PlannedRun) -> None:
    """Train in this process, or in the plan's processes; after out of memory, resume."""
    try:
        _prepare_and_train(run)
    except KeyboardInterrupt as error:
        # An interrupt with text has saved. Others came before the training, or are a second Ctrl-C.
        raise KeyboardInterrupt(str(error) or _how_to_resume(run.folder)) from None
    except typer.Exit as error:
        if error.exit_code == EXIT_INTERRUPTED:  # the processes were training
            tell(_how_to_resume(run.folder))
        raise


def _how_to_resume(folder: Path) -> str:
    """What to type after an interrupt that came before or during a save."""
    if not (folder / RECORD).exists():
        return "interrupted before anything was written: the same command starts again"
    again = f"lisa-train --resume {argument(folder)}"
    if (folder / "last").exists():
        return f"interrupted; {again} continues from the last checkpoint"
    return f"interrupted before the training; {again} starts it, with the features built so far"


def _prepare_and_train(run: PlannedRun) -> None:
    from trainer.cli.ranks import announce
    from trainer.parallel.launch import must_start_processes
    from trainer.run.shortages import OutOfMemory, replace_process

    use_environment(run.plan, run.started.environment)
    # Bad data is reported once, not by every process, and before torch takes seconds to import.
    data = read_data(run)
    run, checkpoint = _checked(run, data)
    write_start(run)
    if must_start_processes(run.plan):
        _train_in_processes(run)
        replace_process(run.folder)
    import_libraries()
    announce(run, data, checkpoint)
    try:
        train_here(run, data, checkpoint)
    except OutOfMemory:
        if "RANK" in os.environ:  # the launcher has to start all processes again
            raise
        replace_process(run.folder)


def _train_in_processes(run: PlannedRun) -> None:
    """Train in as many processes as the plan has; ends unless one of them ran out of memory."""
    from trainer.parallel.launch import start_processes

    command = ["-m", "trainer.cli", "worker", operand(run.folder)]
    code = start_processes(run.plan.processes, command + ["--resume"] * run.resumes)
    resume = f"lisa-train --resume {argument(run.folder)}"
    if code == -signal.SIGABRT:
        fail("a process gave up, see its message: NCCL does so where another one is lost\n"
             f"    hint: {resume}", EXIT_FAILED)  # fmt: skip
    if code < 0:
        fail(f"a process was ended by {signal.Signals(-code).name}, by the system or somebody\n"
             f"    hint: if host memory ran out, free some; {resume}", EXIT_FAILED)  # fmt: skip
    if code != EXIT_OUT_OF_MEMORY:
        raise typer.Exit(code)


def _checked(run: PlannedRun, data: Data) -> tuple[PlannedRun, Path | None]:
    """The run with the digests of its data, and the checkpoint to resume from, if any.

    Raises CannotResume, PlanError, AdapterError.
    """
    from profiles.plan import Plan
    from trainer.data.contents import Contents
    from trainer.run.data_digests import PICTURES, checked_start, digests, trained_on

    started = replace(run.started, left_out=data.left_out)
    contents = Contents(started.data, started.cache, LineProgress(patience=10))
    now = digests(data.train, data.val, data.left_out, contents)
    if not run.resumes:
        if both := trained_on(now, now[PICTURES.format("val")].values()):
            tell(f"note: val and train share {counted(both, 'picture')}: the scores will not say "
                 "what to expect")  # fmt: skip
        if started.adapter is not None:
            from trainer.run.start_from_adapter import check_adapter

            check_adapter(started.adapter, run.plan)
        check_features(run.plan, data, started.cache)
        return replace(run, started=replace(started, digests=now)), None
    from trainer.run.resume import check_plan, resumable

    started = checked_start(started, now, run.folder)
    started.cache.mkdir(parents=True, exist_ok=True)
    checkpoint = resumable(run.folder, tell)
    if checkpoint is not None:
        check_plan(run.plan, Plan.read(checkpoint / "plan.json"))
    if run.changed is not None:
        _check_weights(run, checkpoint)
    check_features(run.plan, data, started.cache)
    return replace(run, started=started), checkpoint


def _check_weights(run: PlannedRun, checkpoint: Path | None) -> None:
    """Raise WeightsError or CannotResume for new `weights` that the run was not begun with."""
    from profiles.plan import Plan

    if run.plan.weights == Plan.read(run.folder / "plan.json").weights:
        return
    import_libraries()
    from trainer.model.weights import weight_source
    from trainer.run.resume import check_base

    base = weight_source(run.plan).fingerprint
    if checkpoint is not None:
        check_base(checkpoint, base)


def resume_run(
    folder: Path,
    data: Path | None,
    cache: Path | None,
    keeping: Mapping[str, Any],
    changes: Sequence[str] = (),
) -> None:
    """Resume a run in its own folder, with a smaller plan if it ran out of memory.

    `keeping`: changed fields of Keeping; `changes`: of the plan, what may change on the way.
    Raises PlanError, CannotResume, NothingSmaller, Held.
    """
    from trainer.run.shortages import remove_unfinished
    from trainer.run.started import Started

    Started.read(folder)  # refuse a folder that holds no run, and leave it unchanged
    with held(folder):
        sweep(folder, FILES)
        remove_unfinished(folder)
        _resume_held(folder, data, cache, keeping, changes)


def _resume_held(
    folder: Path,
    data: Path | None,
    cache: Path | None,
    keeping: Mapping[str, Any],
    changes: Sequence[str],
) -> None:
    from profiles.overrides import assigned
    from profiles.plan import Plan
    from profiles.skipping import announce
    from trainer.cli.ranks import as_launched, collect_shortages
    from trainer.run.resume import with_more_epochs
    from trainer.run.started import Started

    started = Started.read(folder)
    started = replace(
        started,
        data=data or started.data,
        cache=cache or started.cache,
        keeping=replace(started.keeping, **keeping),
    )
    announce(started.skip_broken)
    plan = Plan.read(folder / "plan.json")
    longer = with_more_epochs(plan, changes, folder)
    if is_complete(folder) and not longer:
        more = f"--epochs {plan.schedule.epochs + 1}"
        return tell(f"{folder}: this run is complete; {more} would continue it")
    collect_shortages(folder)
    plan = _recovered(plan, folder, started)
    changed = None
    if changes:
        from advisor.preflight import must_be_folder

        must_be_folder(assigned(changes).get("weights", "default"))
        changed = plan = plan.override(changes)
        # What the user sets stays so after out of memory, too.
        started = replace(started, pinned=tuple({*started.pinned, *assigned(changes)}))
    plan = as_launched(plan, assigned(changes))
    start_run(PlannedRun(plan, folder, started, resumes=True, changed=changed))


def _recovered(plan: Plan, folder: Path, started: Started) -> Plan:
    """The plan to continue with: a smaller one if the run has just run out of memory."""
    from trainer.run import shortages as recovery

    place = recovery.open_report(folder)
    if place is None:
        return plan
    from advisor.fallback import NothingSmaller, fallback

    tried = list(recovery.shortages(folder).values())
    tell(f"out of memory while {tried[-1].phase}, after step {tried[-1].step}; details in {place}")
    try:
        found = fallback(tried, started.pinned, started.data, started.keeping.wait_minutes, tell,
                         prefer=started.prefer)  # fmt: skip
    except NothingSmaller as error:
        recovery.write_answer(place, {"because": str(error)})
        raise
    write_whole(folder / "plan.json", found.plan.to_json())
    recovery.write_answer(place, found.record())
    tell(f"continuing with {found.text}: {found.because}")
    return found.plan
