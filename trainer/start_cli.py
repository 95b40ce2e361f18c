"""A training from its settled plan on: in this process or several, anew, resumed, or recovered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.text import argument, one_line, operand
from trainer.console import (
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    next_steps,
    reporter,
    tell,
    use_allocator,
    use_threads,
    user_errors,
)

if TYPE_CHECKING:
    from advisor.preflight import Advice
    from profiles.plan import Plan
    from trainer.data.mixture import MixedSets
    from trainer.data.reasonseg import Item
    from trainer.resume import Started


@dataclass(frozen=True)
class Beginning:
    """A run about to be: its plan, its folder, and all that `--resume` will need."""

    plan: Plan
    folder: Path
    started: Started
    advice: Advice | None = None
    resumes: bool = False


def begin(run: Beginning) -> None:
    """Train in this process, or in as many as the plan has; out of memory, go on afterwards."""
    with _started(run):
        _begin(run)


@contextmanager
def _started(run: Beginning) -> Iterator[None]:
    """A start that fails leaves no run folder; one that is interrupted says how it goes on."""
    from trainer.launch import is_main
    from trainer.recovery import OutOfMemory

    existed = run.folder.exists()
    own = not run.resumes and not (existed and any(run.folder.iterdir()))
    try:
        yield
    except KeyboardInterrupt as error:
        # What says something has saved; else it was before the training, or a second Ctrl-C.
        raise KeyboardInterrupt(str(error) or _how_to_go_on(run.folder)) from None
    except OutOfMemory:
        raise  # what it took is written down in there
    except Exception as error:
        interrupted = isinstance(error, typer.Exit) and error.exit_code == EXIT_INTERRUPTED
        if is_main() and interrupted:  # it was the processes' training
            tell(_how_to_go_on(run.folder))
        elif is_main() and own and not (run.folder / "last").exists():
            shutil.rmtree(run.folder, ignore_errors=True)
            if existed:
                run.folder.mkdir(exist_ok=True)
        raise


def _how_to_go_on(folder: Path) -> str:
    """What to type after an interrupt that came before, or in the middle of, saving."""
    if not (folder / "plan.json").exists():
        return "interrupted before anything was written: the same command starts again"
    again = f"lisa-train --resume {argument(folder)}"
    if (folder / "last").exists():
        return f"interrupted; {again} goes on from the last checkpoint"
    return f"interrupted before the training; {again} begins it, with the features built so far"


def _begin(run: Beginning) -> None:
    from trainer.launch import must_start_processes, start_processes
    from trainer.recovery import OutOfMemory, replace_process

    for name, value in run.started.environment.items():
        os.environ.setdefault(name, value)  # which card, and the allocator, before torch
    if must_start_processes(run.plan):
        _read_data(run)  # bad data is told once, not by every process
        if not run.resumes:
            _write(run)
        arguments = ["-m", "trainer.cli", "worker", operand(run.folder)] + [
            "--resume"
        ] * run.resumes
        code = start_processes(run.plan.processes, arguments)
        if code != EXIT_OUT_OF_MEMORY:
            raise typer.Exit(code)
        replace_process(run.folder)
    try:
        _train(run)
    except OutOfMemory:
        if "RANK" in os.environ:  # whoever started the processes has to start them again
            raise
        replace_process(run.folder)


def go_on(folder: Path, data: Path | None, cache: Path | None, keeping: Mapping[str, Any]) -> None:
    """Take up a run in its own folder, with a smaller plan if it ran out of memory.

    `keeping`: what is to be otherwise than it began. Raises PlanError, CannotResume,
    NothingSmaller.
    """
    from profiles.plan import Plan
    from trainer.data.broken import announce
    from trainer.resume import Started

    started = Started.read(folder)
    started = replace(
        started,
        data=data or started.data,
        cache=cache or started.cache,
        keeping=replace(started.keeping, **keeping),
    )
    announce(started.skip_broken)
    plan = Plan.read(folder / "plan.json")
    if (folder / "summary.json").exists():
        return tell(f"{folder}: this run is complete")
    started.write(folder)  # for the next time, which may come without a user
    begin(Beginning(_recovered(plan, folder, started), folder, started, resumes=True))


def _recovered(plan: Plan, folder: Path, started: Started) -> Plan:
    """The plan to go on with: another one where the run has just run out of memory."""
    from trainer import recovery
    from trainer.checkpoint import write_whole

    place = recovery.unanswered(folder)
    if place is None:
        return plan
    from advisor.fallback import NothingSmaller, fallback

    tried = list(recovery.shortages(folder).values())
    tell(f"out of memory while {tried[-1].phase}, after step {tried[-1].step}; {place} tells all")
    try:
        found = fallback(tried, started.pinned, started.data, started.keeping.wait_minutes, tell)
    except NothingSmaller as error:
        recovery.answer(place, {"because": str(error)})
        raise
    write_whole(folder / "plan.json", found.plan.to_json())
    recovery.answer(place, found.record())
    tell(f"going on with {found.text}: {found.because}")
    return found.plan


def worker(
    folder: Annotated[Path, typer.Argument()],
    resumes: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """One of the processes that lisa-train starts: the plan and all else lie in the run folder."""
    from profiles.plan import Plan
    from trainer.recovery import OutOfMemory
    from trainer.resume import Started

    with user_errors():
        plan, started = Plan.read(folder / "plan.json"), Started.read(folder)
        try:
            _train(Beginning(plan, folder, started, resumes=resumes))
        except OutOfMemory:
            raise typer.Exit(EXIT_OUT_OF_MEMORY) from None


def _train(run: Beginning) -> None:
    """Train in this process. Raises OutOfMemory once that is written down."""
    from trainer import recovery
    from trainer.launch import is_main

    plan, folder, started = run.plan, run.folder, run.started
    train, val, left_out = _read_data(run)
    use_allocator(plan)
    with reporter() as speaker:
        processes = f" × {plan.processes} processes" if plan.processes > 1 else ""
        speaker.line(
            f"plan {plan.content_hash}: {plan.model} on {plan.device}, {plan.quantization}, "
            f"LoRA {f'r={plan.lora.rank}' if plan.lora else 'off'}, "
            f"batch {plan.micro_batch} × {plan.accumulation}{processes}, {len(train)} samples"
        )
        use_threads(plan, speaker.line)
        from trainer.evaluate import run_sheet
        from trainer.facts import room
        from trainer.loop import Run, outcome
        from trainer.resume import check_data, digests, resumable

        now = digests(train, val, left_out)
        checkpoint = None
        if run.resumes:
            check_data(started, now)
            checkpoint = resumable(folder, speaker.line)
        elif is_main():
            _write(replace(run, started=replace(started, digests=now)))
        before, training = room(plan), None
        try:
            training = Run(plan, train, val, folder, started.cache, speaker, started.keeping)
            summary = training.train(checkpoint)
        except Exception as error:
            if not recovery.is_shortage(error):
                raise
            place = recovery.write_down(folder, plan, error, training, before)
            raise recovery.OutOfMemory(
                f"out of memory, see {place}; "
                f"lisa-train --resume {argument(folder)} goes on with less"
            ) from None
        if training.accelerator.is_main_process:
            sheet = run_sheet(training, folder / "overlay.png", count=6)
            for line in outcome(summary, folder):
                speaker.line(line)
            speaker.line(f"run folder {one_line(folder)}, overlay {one_line(sheet)}")
            speaker.line(next_steps(folder, started.data))


def _read_data(run: Beginning) -> tuple[list[Item] | MixedSets, list[Item], set[str]]:
    """What is trained, what is validated on, and entries left out. Raises DataError."""
    from trainer.data.broken import LIST, Leave, entries, told, write_list
    from trainer.data.mixture import read_training
    from trainer.data.reasonseg import read_split
    from trainer.launch import is_main

    data, plan, leave = run.started.data, run.plan, Leave(run.started.skip_broken)
    train = read_training(data, plan, leave)
    val = read_split(data, "val", plan.max_val_samples, leave)
    if leave.left_out and is_main():
        listed = run.folder / LIST
        run.folder.mkdir(parents=True, exist_ok=True)
        write_list(listed, leave.left_out)
        tell(told(leave.left_out, listed))
    gone = {os.path.relpath(entry, data) for entry in entries(leave.left_out)}
    return train, val, gone


def _write(run: Beginning) -> None:
    """Into the run folder, what `--resume` needs."""
    from trainer.checkpoint import write_whole

    run.folder.mkdir(parents=True, exist_ok=True)
    run.started.write(run.folder)
    write_whole(run.folder / "plan.json", run.plan.to_json())
    if run.advice is not None:
        write_whole(run.folder / "advice.json", run.advice.model_dump_json(indent=2) + "\n")
