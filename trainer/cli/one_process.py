"""Trains in this process: alone, or as one of several that the plan has."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.exits import EXIT_FAILED, EXIT_OUT_OF_MEMORY
from profiles.streams import tell
from profiles.text import argument, counted, one_line, time_text
from trainer.cli.console import RESUME, next_steps, reporter, user_errors
from trainer.cli.planned_run import Data, PlannedRun, read_data
from trainer.process import import_libraries, try_segments, use_allocator, use_threads
from trainer.run.folder import OVERLAY

if TYPE_CHECKING:
    from profiles.plan import Plan
    from trainer.reporter import Reporter
    from trainer.run.run import Run


def worker(
    folder: Annotated[Path, typer.Argument()],
    resumes: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """One of the processes that lisa-train starts: it reads its settings from the run folder."""
    import_libraries()
    from profiles.plan import Plan
    from trainer.run.resume import resumable
    from trainer.run.shortages import OutOfMemory
    from trainer.run.started import Started

    with user_errors(RESUME):
        plan, started = Plan.read(folder / "plan.json"), Started.read(folder)
        run = PlannedRun(plan, folder, started, resumes=resumes)
        try:
            train_here(run, read_data(run), resumable(folder, tell) if resumes else None)
        except OutOfMemory:
            raise typer.Exit(EXIT_OUT_OF_MEMORY) from None


def train_here(run: PlannedRun, data: Data, checkpoint: Path | None) -> None:
    """Train in this process. Raises OutOfMemory once a report is written."""
    plan, folder = run.plan, run.folder
    use_allocator(plan)
    with reporter() as display:
        display.line(_plan_line(plan, len(data.train)))
        use_threads(plan, display.line)
        try_segments(plan)
        training, summary = _trained(run, data, checkpoint, display)
        if not training.accelerator.is_main_process:
            return
        from trainer.answer.evaluate import run_sheet
        from trainer.run.validation import outcome

        for line in outcome(summary, folder):
            display.line(line)
        display.line(took_line(_seconds_here(), run.expected.seconds, run.resumes))
        sheet = run_sheet(training, folder / OVERLAY, count=6)
        display.line(f"run folder {one_line(folder)}, overlay {one_line(sheet)}")
        display.line(next_steps(folder))


def _seconds_here() -> float:
    """Since this process began: the forecast counts the start of the libraries, too."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


def took_line(seconds: float, forecast_seconds: float | None, resumed: bool) -> str:
    """How long a run took, beside its forecast; for a resumed run only the time since then."""
    took = f"took {time_text(seconds)}" + " since it was resumed" * resumed
    if forecast_seconds is None:
        return took
    return f"{took}; {time_text(forecast_seconds)} were forecast"


def _plan_line(plan: Plan, samples: int) -> str:
    """The plan in one line."""
    processes = f" × {plan.processes} processes" if plan.processes > 1 else ""
    questions = plan.questions_per_picture
    batch = f"{plan.micro_batch} × {plan.accumulation}{processes}"
    if questions > 1:
        batch = f"{plan.effective_batch} questions, up to {questions} a picture, {batch}"
    return (
        f"plan {plan.content_hash}: {plan.model} on {plan.device}, {plan.quantization}, "
        f"LoRA {f'r={plan.lora.rank}' if plan.lora else 'off'}, "
        f"batch {batch}, "
        f"{counted(samples, 'sample')}"
    )


def _trained(
    run: PlannedRun, data: Data, checkpoint: Path | None, display: Reporter
) -> tuple[Run, dict[str, Any]]:
    """The finished run and its summary. Raises OutOfMemory once a report is written."""
    from trainer.hardware import room
    from trainer.parallel.launch import hold
    from trainer.parallel.lost import is_lost, is_silence, what_is_lost
    from trainer.run.out_of_memory import is_shortage, write_report
    from trainer.run.run import Run
    from trainer.run.shortages import OutOfMemory

    plan, folder, started = run.plan, run.folder, run.started
    before, training, expected = room(plan), None, run.expected
    try:
        training = Run(plan, data.train, data.val, folder, started.cache, display, started.keeping,
                       expected)  # fmt: skip
        if plan.processes > 1:
            hold(training)
        if checkpoint is None and started.adapter is not None:
            training.start_from(started.adapter)
        return training, training.train(checkpoint)
    except Exception as error:
        short = is_shortage(error)
        if is_lost(error) and not short:
            # One of a machine says that another has ended; the first one may itself be silent.
            if os.environ.get("LOCAL_RANK") == "0" or is_silence(error):
                tell(f"error: {what_is_lost(error)}, so this one ends too\n    hint: its own "
                     f"output or the launcher's says why; lisa-train --resume {argument(folder)}"
                     )  # fmt: skip
            raise typer.Exit(EXIT_FAILED) from None
        if not short:
            raise
        reached = None
        if training is not None:
            reached = training.step, training.model, training.optimizer.optimizer
        place = write_report(folder, plan, error, reached, before)
        raise OutOfMemory(
            f"out of memory, see {place}; "
            f"lisa-train --resume {argument(folder)} continues with a smaller plan"
        ) from None
