"""lisa-train: parse and print. torch is imported inside the commands."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from profiles.command_line import Commands, model_names
from profiles.command_options import must_be_bare, takes, takes_only
from profiles.exits import EXIT_FAILED, EXIT_INTERRUPTED, fail
from profiles.models import converted, model_profile
from profiles.numbers import option_parser
from profiles.overrides import assigned
from profiles.sizes import GIB, parse_size
from profiles.streams import say, set_streams, tell
from profiles.text import argument, is_text, some
from trainer.atomic_folder import refuse_taken
from trainer.cli.chosen_plan import chosen_plan, refuse_gpus_on_cpu
from trainer.cli.compare import compare
from trainer.cli.console import RESUME, sigterm_as_ctrl_c, user_errors
from trainer.cli.data import check_data_folder, import_, preview, synthesise
from trainer.cli.one_process import worker
from trainer.cli.planned_run import PlannedRun
from trainer.cli.ranks import deciding, join
from trainer.cli.restarted import begun_before, launcher_name
from trainer.cli.results import evaluate, export
from trainer.cli.start import resume_run, start_run
from trainer.cli.train_options import TrainOptions
from trainer.parallel.launch import (
    end_with_parent,
    is_launched,
    is_left_behind,
    is_main,
    is_under_accelerate,
    leave_group,
    own_launcher,
)
from trainer.process import (
    clear_leftover_variables,
    feature_cache,
    import_libraries,
    must_be_alone,
    work_offline,
)
from trainer.run.folder import LATEST, RECORD, new_run, newest_run

app = Commands(
    examples=["lisa-train --auto --model tiny --data-dir DIR", "lisa-train --resume runs/latest"]
)


@app.callback(invoke_without_command=True)
@takes(TrainOptions)
def train(context: typer.Context, options: TrainOptions) -> None:
    """Train LISA on ReasonSeg data, with the advisor's plan or a plan file, and your settings."""
    if context.invoked_subcommand not in ("convert", "export"):  # which may use the hub
        work_offline()
    command = context.invoked_subcommand or ("--check-data" if options.check_data else "")
    if command not in ("", "worker"):  # a training, and a rank of one
        must_be_alone(f"lisa-train {command}")
    if context.invoked_subcommand is not None:
        return must_be_bare(context, options)
    if options.check_data is not None:
        takes_only(options, {"check_data", "skip_broken"}, "--check-data looks at data alone")
        raise typer.Exit(check_data_folder(options.check_data, options.skip_broken))
    if options.auto and options.plan is not None:
        fail("--auto and --plan: give one of the two")
    if options.prefer != "usual" and (options.plan or options.resume):
        fail("--prefer chooses a plan: leave it out with --plan and --resume")
    if options.use_lora and assigned(options.settings or ()).get("lora") == "null":
        fail("--use-lora and --set lora=null: give one of the two")
    if options.resume is not None:
        _resume(options, options.resume)
    else:
        _start(options)


def _resume(options: TrainOptions, run: Path) -> None:
    """Resume a run; settings that would change what it learns are refused, except more epochs."""
    from profiles.levers import MAY_CHANGE_ON_RESUME
    from profiles.plan import Plan
    from trainer.run.resume import EPOCHS

    run = newest_run(run, RECORD)
    if options.recipe is not None:
        fail("--resume uses the run's own plan: leave out --recipe")
    with user_errors():
        changes = options.assignments()
    given = {"--auto": options.auto, "--plan": options.plan, "--model": options.model,
             "--use-lora": options.use_lora}  # fmt: skip
    wrong = [name for name, value in given.items() if value]
    wrong += [name for name in assigned(changes) if name not in MAY_CHANGE_ON_RESUME | {EPOCHS}]
    if wrong:
        fail(f"--resume uses the run's own plan: leave out {some(wrong)}\n    hint: "
             + _begun_anew(run, {name: value for name, value in assigned(changes).items()
                                 if name in wrong})
             + "--epochs may grow, and --set may change memory, speed and places: "
             f"{', '.join(sorted(MAY_CHANGE_ON_RESUME))}")  # fmt: skip
    if options.skip_broken is not None:
        fail("--resume skips the same entries as the run did: leave out --skip-broken")
    if options.adapter is not None:
        fail("--resume continues with what the run has trained: leave out --adapter")
    if options.output_dir != LATEST:
        fail("--resume continues in the run's own folder: leave out --output-dir")
    data, cache = options.data_dir, options.cache_dir
    _must_be_text({"--data-dir": data, "--cache-dir": cache, "--resume": run})
    if not is_main():
        with user_errors(RESUME):
            return join(run, data, cache)
    with deciding():
        if options.gpus is not None and (run / "plan.json").exists():
            refuse_gpus_on_cpu(options.gpus, Plan.read(run / "plan.json").device == "cpu")
        resume_run(run, data, cache, options.keeping(), changes)


def _start(options: TrainOptions) -> None:
    """Start a run with the plan that the options give, or the advisor."""
    from profiles.settings import Lora
    from profiles.skipping import announce, read_most
    from trainer.run.started import Keeping, Started

    with user_errors(RESUME):
        most = read_most(options.skip_broken)
        announce(most)
        data = options.data_dir
        if data is None:
            fail(
                "--data-dir: name the folder that holds ReasonSeg/{train,val}\n"
                "    hint: lisa-train import SRC DIR makes one of your own pictures, "
                "lisa-train synthesise DIR writes one to try with"
            )
        _must_be_text({"--data-dir": data, "--output-dir": options.output_dir,
                       "--cache-dir": options.cache_dir, "--weights": options.weights,
                       "--adapter": options.adapter})  # fmt: skip
        if not is_main():
            return join(options.output_dir, data, options.cache_dir or feature_cache())
        if (begun := begun_before(options.output_dir)) is not None:
            with deciding():
                return resume_run(begun, None, None, {})
        started = Started(data, options.cache_dir or feature_cache(), {},
                          Keeping(**options.keeping()), skip_broken=most,
                          adapter=options.adapter, launcher=launcher_name())  # fmt: skip
        with deciding(), new_run(options.output_dir) as folder:
            plan, advice = chosen_plan(options, started)
            if options.use_lora and plan.lora is None:  # an advised plan has adapters already
                plan = plan.override([f"lora={Lora().model_dump_json()}"])
            if advice is not None:  # the user's settings stay, whatever else changes for memory
                pinned = _named(options.assignments())
                started = replace(started, pinned=pinned, prefer=options.prefer,
                                  environment=advice.environment)  # fmt: skip
            start_run(PlannedRun(plan, folder, started, advice))


def _named(assignments: list[str]) -> tuple[str, ...]:
    """The top-level settings that are assigned."""
    names = (text.partition("=")[0].partition(".")[0] for text in assignments)
    return tuple({name.replace("-", "_") for name in names})


def _in_gib(text: str) -> float:
    return max(parse_size(text) / GIB, 0.001)


@app.command(
    examples=[
        "lisa-train convert ByteDance/Sa2VA-Qwen3-VL-4B FOLDER --model sa2va-qwen3-vl-4b",
        "lisa-train convert llava-hf/llava-1.5-7b-hf facebook/sam-vit-huge FOLDER --model 7b",
    ]
)
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...", help="Checkpoints: folders, or OWNER/NAME or OWNER/NAME@REVISION."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    model: Annotated[
        str,
        typer.Option(help=f"Size to make: {', '.join(converted())}.", autocompletion=model_names),
    ],
    shard_gib: Annotated[
        float,
        typer.Option(metavar="SIZE", parser=option_parser(_in_gib), help="Largest file written."),
    ] = 2.0,
    offline: Annotated[
        bool, typer.Option(help="Use only the hub's cache, as with HF_HUB_OFFLINE=1.")
    ] = False,
) -> None:
    """Turn a model's published checkpoints into a folder for --weights DST."""
    with user_errors(), sigterm_as_ctrl_c():
        model_profile(model)  # as the target, known before gigabytes are downloaded
        refuse_taken(target)
        import_libraries()
        from trainer.convert.convert import convert as run
        from trainer.convert.hub import checkpoint_folder

        folders = [checkpoint_folder(source, tell, offline) for source in sources]
        report = run(folders, target, model, tell, int(shard_gib * GIB))
    say("\n".join([*report.lines(), f"{model} in {target}; its conversion.json lists all"]))


def _begun_anew(run: Path, changes: dict[str, str]) -> str:
    """How to train with settings that a run cannot change: a new one with the rest of its plan."""
    if not changes:
        return ""
    given = "".join(f" --set {argument(f'{name}={value}')}" for name, value in changes.items())
    plan = run / "plan.json"
    return f"a new run: lisa-train --data-dir DIR --plan {argument(str(plan))}{given}; here "


def _must_be_text(folders: dict[str, Path | str | None]) -> None:
    """End if a folder's name is not valid text: the run's records could not hold it."""
    for option, folder in folders.items():
        whole = os.path.abspath(folder or "")
        if not is_text(whole):
            fail(f"{option}: got {whole}; allowed: a path in UTF-8\n    hint: rename the folder")


app.command(examples=["lisa-train synthesise DIR --train 64 --val 16 --test 16"])(synthesise)
app.command(
    "import", examples=["lisa-train import annotations.json DIR --questions questions.csv"]
)(import_)
app.command(examples=["lisa-train preview DIR --split val --count 6"])(preview)
app.command(examples=["lisa-train evaluate RUN --data-dir DIR --split test"])(evaluate)
app.command(
    examples=["lisa-train export RUN DST", "lisa-train export RUN DST --merge --push OWNER/NAME"]
)(export)
app.command(examples=["lisa-train compare RUN OTHER"])(compare)
app.command(hidden=True)(worker)


def main() -> None:
    """Entry point of `lisa-train`, also under torchrun and `accelerate launch`."""
    set_streams()
    clear_leftover_variables()
    if launched := is_launched(os.environ):
        end_with_parent(parent=own_launcher(os.environ))
        if is_left_behind(os.environ):
            leave_group(EXIT_FAILED)
    elif is_under_accelerate():
        end_with_parent(signal.SIGTERM)  # saves, and ends the processes it has started
    try:
        app(prog_name="lisa-train")
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if launched:
        leave_group(code)
    sys.exit(code)
