"""lisa-train: parse and print. torch is imported inside the commands."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.exits import EXIT_INTERRUPTED
from profiles.sizes import GIB
from profiles.streams import say, set_streams, tell
from profiles.text import is_text
from trainer.cli.console import ended_politely, user_errors
from trainer.cli.data import check_data_folder, import_, preview, synthesise
from trainer.cli.options import Settings, SkipBroken, Text
from trainer.cli.results import evaluate, export
from trainer.cli.start import Beginning, begin, go_on, worker
from trainer.exits import fail
from trainer.parallel.launch import end_with_parent, is_launched, is_under_accelerate, leave_group
from trainer.process import feature_cache, heed_the_plan, stay_at_home
from trainer.run.folder import LATEST, new_run

if TYPE_CHECKING:
    from advisor.advice import Advice
    from profiles.plan import Plan

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    auto: Annotated[
        bool, typer.Option("--auto", help="Train with lisa-advise's plan: so it is without --plan.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="Train with this plan.json.")] = None,
    model: Annotated[Text, typer.Option(help="Size: tiny, 7b, 7b-v1, 13b or 13b-v1.")] = None,
    weights: Annotated[
        Text, typer.Option(metavar="FOLDER", help="Model folder of lisa-train convert, or random.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Start from this LoRA adapter: PEFT's, or an export."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with ReasonSeg and others.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Run folder, a new one.")] = LATEST,
    cache_dir: Annotated[Path | None, typer.Option(help="Feature cache folder.")] = None,
    check_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check a data folder and stop.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was ended.")
    ] = None,
    save_minutes: Annotated[
        float | None, typer.Option(min=0, help="Between two checkpoints to go on from.  [10]")
    ] = None,
    save_steps: Annotated[
        int | None, typer.Option(min=1, help="The same in optimizer steps.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Such checkpoints to keep.  [2]")] = None,
    wait_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="For memory that other processes took, before less is used."),
    ] = None,
    skip_broken: SkipBroken = None,
    set_: Settings = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per forward pass.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Data-loading processes.")] = None,
    no_quantization: Annotated[
        bool, typer.Option("--no-quantization", help="Full-width base weights.")
    ] = False,
    use_lora: Annotated[bool, typer.Option("--use-lora", help="Add LoRA adapters.")] = False,
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA alpha.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="LoRA dropout.")] = None,
    grad_clip: Annotated[float | None, typer.Option(help="Largest gradient norm.")] = None,
    max_train_samples: Annotated[int | None, typer.Option(help="First n to train on.")] = None,
    max_val_samples: Annotated[int | None, typer.Option(help="First n to validate on.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Train LISA on ReasonSeg data: by the advisor's plan, or a plan file; settings stay as set."""
    if context.invoked_subcommand not in ("convert", "export"):  # which may be sent to the hub
        stay_at_home()
    if context.invoked_subcommand:
        return
    if check_data is not None:
        raise typer.Exit(check_data_folder(check_data, skip_broken))
    if auto and plan is not None:
        fail("--auto and --plan: give one of the two")
    flags = {
        "weights": weights,
        "schedule.epochs": epochs,
        "micro_batch": batch_size,
        "workers": num_workers,
        "lora.rank": lora_r,
        "lora.alpha": lora_alpha,
        "lora.dropout": lora_dropout,
        "schedule.grad_clip": grad_clip,
        "max_train_samples": max_train_samples,
        "max_val_samples": max_val_samples,
        "schedule.learning_rate": lr,
        "seed": seed,
    }
    assignments = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if no_quantization:
        assignments.insert(0, "quantization=none")
    asked = {"minutes": save_minutes, "steps": save_steps, "checkpoints": keep,
             "wait_minutes": wait_minutes}  # fmt: skip
    keeping: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if resume is not None:
        if auto or plan or model or assignments or set_ or use_lora:
            fail("--resume goes on with the run's own plan: leave the other settings out")
        if skip_broken is not None:
            fail("--resume leaves out what the run did: leave --skip-broken out")
        if adapter is not None:
            fail("--resume goes on with what the run has trained: leave --adapter out")
        if output_dir != LATEST:
            fail("--resume goes on in the run's own folder: leave --output-dir out")
        _must_be_text({"--data-dir": data_dir, "--cache-dir": cache_dir, "--resume": resume})
        with user_errors():
            return go_on(resume, data_dir, cache_dir, keeping)
    from profiles.settings import Lora
    from profiles.skipping import announce, read_most
    from trainer.run.resume import Keeping, Started

    with user_errors():
        assignments += set_ or []
        most = read_most(skip_broken)
        announce(most)
        if data_dir is None:
            fail(
                "--data-dir: name the folder that holds ReasonSeg/{train,val}\n"
                "    hint: lisa-train synthesise DIR writes one to try with"
            )
        _must_be_text({"--data-dir": data_dir, "--output-dir": output_dir,
                       "--cache-dir": cache_dir, "--weights": weights,
                       "--adapter": adapter})  # fmt: skip
        started = Started(data_dir, cache_dir or feature_cache(), {}, Keeping(**keeping),
                          skip_broken=most, adapter=adapter)  # fmt: skip
        with new_run(output_dir) as folder:
            resolved, advice = _resolve(auto, plan, model, assignments, data_dir)
            if use_lora and resolved.lora is None:  # an advised plan has them, a file need not
                resolved = resolved.override([f"lora={Lora().model_dump_json()}"])
            if advice is not None:  # what the user has set stays, whatever is given up for memory
                named = (text.partition("=")[0].partition(".")[0] for text in assignments)
                pinned = tuple({name.replace("-", "_") for name in named})
                started = replace(started, pinned=pinned, environment=advice.environment)
            begin(Beginning(resolved, folder, started, advice))


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="Checkpoints: folders, or OWNER/NAME[@REVISION]."),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    model: Annotated[str, typer.Option(help="Size to make: 7b, 7b-v1, 13b or 13b-v1.")],
    shard_gib: Annotated[float, typer.Option(min=0.001, help="Largest file written.")] = 2.0,
    offline: Annotated[
        bool, typer.Option(help="Of the hub, only what lies in its cache. Or HF_HUB_OFFLINE=1.")
    ] = False,
) -> None:
    """Turn published checkpoints (LLaVA, LISA, SAM, CLIP) into a folder for --weights DST."""
    from trainer.convert.convert import convert as run
    from trainer.convert.hub import checkpoint_folder

    with user_errors(), ended_politely():
        folders = [checkpoint_folder(source, tell, offline) for source in sources]
        report = run(folders, target, model, tell, int(shard_gib * GIB))
    say("\n".join([*report.lines(), f"{model} in {target}; its conversion.json lists all"]))


def _resolve(
    auto: bool, path: Path | None, model: Text, assignments: list[str], data: Path
) -> tuple[Plan, Advice | None]:
    """The plan file with the settings, else the advice and its plan. Raises PlanError."""
    from profiles.plan import Plan

    if path is not None:
        base = Plan.read(path)
        plan = base.override(assignments + ([f"model={model}"] if model else []))
        _refuse_large_on_cpu(plan.model, plan.device == "cpu")
        return plan, None
    from advisor.dry_run import measured
    from advisor.machine.probe import probe
    from advisor.machine.target import pick_gpu
    from advisor.memory.card import live_forecast
    from advisor.preflight import advise
    from profiles.models import is_packaged
    from profiles.overrides import assigned

    if not auto:
        tell("no plan is named: training with lisa-advise's (--auto)")
    machine = probe()
    live = live_forecast(machine, None, data, tell)
    advice = advise(machine, model, tuple(assignments), data=data, live=live)
    on_cpu = pick_gpu(machine) is None or assigned(assignments).get("device") == "cpu"
    _refuse_large_on_cpu(advice.model, on_cpu)
    advice = measured(advice, tell)
    tell(f"{advice.verdict}: {advice.summary}")
    # lisa-tiny is so small that settings nobody has tested may be tried, unless advice is asked.
    tries = not auto and is_packaged(advice.model) and advice.verdict == "UNKNOWN"
    if advice.plan is None or (advice.exit_code and not tries):
        raise typer.Exit(advice.exit_code)
    return advice.plan, advice


def _refuse_large_on_cpu(model: str, on_cpu: bool) -> None:
    """End where a large model would train on the CPU, which takes days for an epoch."""
    from profiles.models import is_packaged

    if on_cpu and not is_packaged(model):
        fail(
            f"{model}: training it takes a GPU; on a CPU one epoch would take days\n"
            "    hint: lisa-advise doctor says what is missing here, "
            f"lisa-advise --model {model} --vram 8GiB what a card could do; "
            "--model tiny trains on a CPU"
        )


def _must_be_text(folders: dict[str, Path | str | None]) -> None:
    """End where a folder's name is no text: the run's records could not say where it lies."""
    for option, folder in folders.items():
        whole = os.path.abspath(folder or "")
        if not is_text(whole):
            fail(f"{option}: got {whole}; allowed: a path in UTF-8\n    hint: rename the folder")


app.command()(synthesise)
app.command("import")(import_)
app.command()(preview)
app.command()(evaluate)
app.command()(export)
app.command(hidden=True)(worker)


def hyphenated(arguments: list[str]) -> list[str]:
    """Options spelled with underscores, as the seed's commands have them, spelled with hyphens."""
    result: list[Any] = []
    for one in arguments:
        name, equals, value = one.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else one)
    return result


def main() -> None:
    """Entry point of `lisa-train`, also `accelerate launch -m trainer.cli`."""
    set_streams()
    # On CPUs with AVX512-BF16 it asks for a package that would fetch code from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    heed_the_plan()
    if launched := is_launched(os.environ):
        end_with_parent()
    elif is_under_accelerate():
        end_with_parent(signal.SIGTERM)  # saves, and ends the processes it has started
    try:
        app(args=hyphenated(sys.argv[1:]), prog_name="lisa-train")
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if launched:
        leave_group(code)
    sys.exit(code)
