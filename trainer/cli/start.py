"""A training, once its plan is final: in one process or several; new, resumed, or recovered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.exits import EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY
from profiles.files import held, sweep, write_whole
from profiles.streams import tell
from profiles.text import argument, counted, one_line, operand
from trainer.cli.console import Plain, next_steps, reporter, user_errors
from trainer.process import try_segments, use_allocator, use_threads
from trainer.run.folder import FILES, OVERLAY, RECORD, is_complete

if TYPE_CHECKING:
    from advisor.advice import Advice
    from profiles.plan import Plan
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


@dataclass(frozen=True)
class Data:
    """Training and validation data of a run, and the broken entries that were left out."""

    train: list[Item] | MixedSets
    val: list[Item]
    left_out: tuple[str, ...]


def start_run(run: PlannedRun) -> None:
    """Train in this process, or in as many as the plan has; after out of memory, resume."""
    from trainer.parallel.launch import is_main

    try:
        _prepare_and_train(run)
    except KeyboardInterrupt as error:
        # One with text has saved; else it came before the training, or was a second Ctrl-C.
        raise KeyboardInterrupt(str(error) or _how_to_resume(run.folder)) from None
    except typer.Exit as error:
        if is_main() and error.exit_code == EXIT_INTERRUPTED:  # the processes were training
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
    from trainer.parallel.launch import is_main, must_start_processes, start_processes
    from trainer.run.out_of_memory import OutOfMemory, replace_process
    from trainer.run.resume import resumable

    for name, value in run.started.environment.items():
        os.environ.setdefault(name, value)  # which card, and the allocator, before torch
    data = _read_data(run)  # bad data is reported once, not by every process
    checkpoint = None
    if is_main():
        run, checkpoint = _checked(run, data)
        _write(run)
    elif run.resumes:
        checkpoint = resumable(run.folder, tell)
    if must_start_processes(run.plan):
        command = ["-m", "trainer.cli", "worker", operand(run.folder)]
        arguments = command + ["--resume"] * run.resumes
        code = start_processes(run.plan.processes, arguments)
        if code != EXIT_OUT_OF_MEMORY:
            raise typer.Exit(code)
        replace_process(run.folder)
    try:
        _train(run, data, checkpoint)
    except OutOfMemory:
        if "RANK" in os.environ:  # the launcher has to start all processes again
            raise
        replace_process(run.folder)


def _checked(run: PlannedRun, data: Data) -> tuple[PlannedRun, Path | None]:
    """The run with the digests of its data, and the checkpoint to resume from, if any.

    Raises CannotResume, PlanError, AdapterError.
    """
    from profiles.plan import Plan
    from trainer.data.contents import Contents
    from trainer.run.data_digests import checked_start, digests
    from trainer.run.resume import check_plan, resumable

    started = replace(run.started, left_out=data.left_out)
    contents = Contents(started.data, started.cache, Plain(patience=10))
    now = digests(data.train, data.val, data.left_out, contents)
    if not run.resumes:
        if started.adapter is not None:
            from trainer.run.start_from_adapter import check

            check(started.adapter, run.plan)
        return replace(run, started=replace(started, digests=now)), None
    started = checked_start(started, now, run.folder)
    checkpoint = resumable(run.folder, tell)
    if checkpoint is not None:
        check_plan(run.plan, Plan.read(checkpoint / "plan.json"))
    return replace(run, started=started), checkpoint


def resume_run(
    folder: Path, data: Path | None, cache: Path | None, keeping: Mapping[str, Any]
) -> None:
    """Resume a run in its own folder, with a smaller plan if it ran out of memory.

    `keeping`: changed fields of Keeping. Raises PlanError, CannotResume,
    NothingSmaller, Held.
    """
    from trainer.parallel.launch import is_main
    from trainer.run.out_of_memory import remove_unfinished
    from trainer.run.started import Started

    Started.read(folder)  # refuse a folder that holds no run, and leave it unchanged
    with held(folder) if is_main() else nullcontext():
        if is_main():
            sweep(folder, FILES)
            remove_unfinished(folder)
        _resume_held(folder, data, cache, keeping)


def _resume_held(
    folder: Path, data: Path | None, cache: Path | None, keeping: Mapping[str, Any]
) -> None:
    from profiles.plan import Plan
    from profiles.skipping import announce
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
    if is_complete(folder):
        return tell(f"{folder}: this run is complete")
    start_run(PlannedRun(_recovered(plan, folder, started), folder, started, resumes=True))


def _recovered(plan: Plan, folder: Path, started: Started) -> Plan:
    """The plan to continue with: a smaller one if the run has just run out of memory."""
    from trainer.run import out_of_memory as recovery

    place = recovery.unhandled(folder)
    if place is None:
        return plan
    from advisor.fallback import NothingSmaller, fallback

    tried = list(recovery.shortages(folder).values())
    tell(f"out of memory while {tried[-1].phase}, after step {tried[-1].step}; details in {place}")
    try:
        found = fallback(tried, started.pinned, started.data, started.keeping.wait_minutes, tell)
    except NothingSmaller as error:
        recovery.write_answer(place, {"because": str(error)})
        raise
    write_whole(folder / "plan.json", found.plan.to_json())
    recovery.write_answer(place, found.record())
    tell(f"continuing with {found.text}: {found.because}")
    return found.plan


def worker(
    folder: Annotated[Path, typer.Argument()],
    resumes: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """One of the processes that lisa-train starts: the plan and all else lie in the run folder."""
    from profiles.plan import Plan
    from trainer.run.out_of_memory import OutOfMemory
    from trainer.run.resume import resumable
    from trainer.run.started import Started

    with user_errors():
        plan, started = Plan.read(folder / "plan.json"), Started.read(folder)
        run = PlannedRun(plan, folder, started, resumes=resumes)
        try:
            _train(run, _read_data(run), resumable(folder, tell) if resumes else None)
        except OutOfMemory:
            raise typer.Exit(EXIT_OUT_OF_MEMORY) from None


def _train(run: PlannedRun, data: Data, checkpoint: Path | None) -> None:
    """Train in this process. Raises OutOfMemory once a report is written."""
    from trainer.parallel.launch import hold, is_main
    from trainer.run import out_of_memory as recovery

    plan, folder, started = run.plan, run.folder, run.started
    use_allocator(plan)
    with reporter() as speaker:
        processes = f" × {plan.processes} processes" if plan.processes > 1 else ""
        speaker.line(
            f"plan {plan.content_hash}: {plan.model} on {plan.device}, {plan.quantization}, "
            f"LoRA {f'r={plan.lora.rank}' if plan.lora else 'off'}, "
            f"batch {plan.micro_batch} × {plan.accumulation}{processes}, "
            f"{counted(len(data.train), 'sample')}"
        )
        use_threads(plan, speaker.line)
        in_plan = f'"allocator": "" in {folder / "plan.json"}'
        try_segments(plan, in_plan if run.resumes else "--set allocator=")
        from trainer.answer.evaluate import run_sheet
        from trainer.hardware import room
        from trainer.model.footprint import DoesNotFit
        from trainer.run.run import Run
        from trainer.run.validation import outcome

        before, training = room(plan), None
        try:
            training = Run(
                plan, data.train, data.val, folder, started.cache, speaker, started.keeping
            )
            if plan.processes > 1:
                hold(training)
            if checkpoint is None and started.adapter is not None:
                training.start_from(started.adapter)
            summary = training.train(checkpoint)
        except Exception as error:
            if not recovery.is_shortage(error):
                if run.resumes and isinstance(error, DoesNotFit) and is_main():
                    tell(f"note: --resume takes no settings: free the memory and try again, or set "
                         f"what the error names in {folder / 'plan.json'}")  # fmt: skip
                raise
            reached = None
            if training is not None:
                reached = training.step, training.model, training.optimizer.optimizer
            place = recovery.write_report(folder, plan, error, reached, before)
            raise recovery.OutOfMemory(
                f"out of memory, see {place}; "
                f"lisa-train --resume {argument(folder)} continues with a smaller plan"
            ) from None
        if training.accelerator.is_main_process:
            sheet = run_sheet(training, folder / OVERLAY, count=6)
            for line in outcome(summary, folder):
                speaker.line(line)
            speaker.line(f"run folder {one_line(folder)}, overlay {one_line(sheet)}")
            speaker.line(next_steps(folder, started.data))


def _read_data(run: PlannedRun) -> Data:
    """The data to train and validate on, without broken entries. Raises DataError.

    On resume exactly those entries are left out that the run left out when it began.
    """
    from trainer.data.broken import LIST, SkippedEntries, left_out_line, write_list
    from trainer.data.findings import DataError
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.mixture import read_training
    from trainer.parallel.launch import is_main

    data, plan = run.started.data, run.plan
    known = None if run.started.left_out is None else frozenset(run.started.left_out)
    leave = SkippedEntries(run.started.skip_broken, known=known, root=data)
    try:
        train = read_training(data, plan, leave)
        val = read_split(data, "val", plan.max_val_samples, leave)
    except DataError as error:
        if not run.resumes or not error.hints:
            raise
        fix = "hint: fix them, because a run continues with the data that it started with"
        raise DataError(error.findings, [fix]) from None
    if leave.left_out and known is None and is_main():
        listed = run.folder / LIST
        run.folder.mkdir(parents=True, exist_ok=True)
        write_list(listed, leave.left_out)
        tell(left_out_line(leave.left_out, listed))
    return Data(train, val, tuple(sorted(leave.places())))


def _write(run: PlannedRun) -> None:
    """Write what `--resume` needs into the run folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.resumes:
        write_whole(run.folder / "plan.json", run.plan.to_json())
    if run.advice is not None:
        write_whole(run.folder / "advice.json", run.advice.model_dump_json(indent=2) + "\n")
    run.started.write(run.folder)  # last: with run.json the run exists
