"""lisa-advise: parses, calls `advise`, prints. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import table
from advisor.cli.forecast import check_command, forecast_command
from advisor.cli.options import (
    PLOT_SUFFIXES,
    Card,
    DataDir,
    Json,
    Settings,
    SkipBroken,
    System,
    Text,
    Vram,
    must_agree,
    must_be_data,
    must_be_writable,
    named_card,
    parse_size,
)
from advisor.cli.output import plot_step, print_advice, saved, write
from profiles.exits import EXIT_FAILED, EXIT_USAGE, fail
from profiles.files import refused
from profiles.streams import say, set_streams, tell

if TYPE_CHECKING:
    from advisor.advice import Advice


app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(table.app, name="table")
app.command("forecast")(forecast_command)
app.command("check")(check_command)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[
        Text,
        typer.Option(help="Size: tiny, 7b, 7b-v1, 13b or 13b-v1. Default: one that fits."),
    ] = None,
    settings: Settings = None,
    weights: Annotated[
        Text, typer.Option(metavar="FOLDER", help="Model folder of lisa-train convert, or random.")
    ] = None,
    lora_r: Annotated[
        int | None, typer.Option("--lora-r", min=1, max=256, help="Set LoRA's rank.")
    ] = None,
    no_quantization: Annotated[
        bool, typer.Option("--no-quantization", help="Keep the base weights as published.")
    ] = False,
    gpu: Card = None,
    vram: Vram = None,
    system: System = None,
    data_dir: DataDir = None,
    skip_broken: SkipBroken = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run three steps of the plan on this GPU.")
    ] = False,
    emulate_vram: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Try a smaller card's plan here, under its cap."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, if it fits, to FILE.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw one step's memory as a picture.")
    ] = None,
    explain: Annotated[
        Text, typer.Option(metavar="COMPONENT", help="Explain a part of the memory and exit.")
    ] = None,
    as_json: Json = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)] = None,
) -> None:
    """What can I train on my GPU, and with which settings?

    Exit codes: 0 fits, 1 does not fit, 2 bad usage, 3 cannot decide, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        given = (model, settings, weights, lora_r, no_quantization, gpu, vram, system, data_dir,
                 skip_broken, measure, emulate_vram, save, plot, explain, as_json, svg)  # fmt: skip
        if any(given):
            fail(f"give the options of {context.invoked_subcommand} after its name")
        return
    if explain is not None:
        from advisor.report.glossary import explain as explained

        try:
            say(explained(explain))
        except ValueError as error:
            fail(f"--explain: {error}")
        return
    from advisor.machine.probe import probe
    from advisor.memory.card import live_forecast
    from advisor.preflight import advise
    from advisor.rehearsal import BadQuestion, RehearsalFailed
    from profiles.findings import PlanError

    if emulate_vram is not None and (vram or gpu):
        fail("--emulate-vram gives the card's size already; leave out --vram and --gpu")
    if measure and (vram or gpu):
        fail("--measure needs a card here; --emulate-vram SIZE tries the plan of a smaller one")
    for path in (save, plot):
        must_be_writable(path)
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        fail(f"--plot: got {plot.name}; the name must end in one of {', '.join(PLOT_SUFFIXES)}")
    target = named_card(vram or emulate_vram, gpu, system)
    must_be_data(data_dir, skip_broken)
    assignments = [*(settings or ()), *_sugar(weights, lora_r, no_quantization)]
    must_agree(assignments)
    machine = probe()
    try:
        live = live_forecast(machine, target, data_dir, tell)
        advice = advise(machine, model, assignments, target, data=data_dir, live=live)
        if measure or emulate_vram is not None:
            advice = _tried(advice, emulated=emulate_vram is not None)
        if plot is not None:
            plot_step(advice, plot)
    except PlanError as error:
        fail(f"these settings cannot run\n{error}")
    except BadQuestion as error:
        fail(f"this data cannot be used\n{error}")
    except RehearsalFailed as error:
        fail(str(error), EXIT_FAILED)
    if save is not None:
        advice = saved(advice, save)
    if svg is not None:
        from advisor.report.text import render_svg

        write(svg, render_svg(advice))
    try:
        print_advice(advice, as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich leaves with 1 when the reader has gone
        # A reader such as `head` has seen enough; the answer is still what it is.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(advice.exit_code)


def _tried(advice: Advice, emulated: bool) -> Advice:
    """The advice after a trial on this machine's GPU, under a smaller card's cap if `emulated`."""
    from advisor.dry_run import measured
    from advisor.machine.target import pick_gpu

    here = pick_gpu(advice.machine)
    if here is None:
        fail("this machine has no GPU to try a plan on\n    hint: --vram SIZE advises without one")
    cap = None
    if emulated and advice.budget is not None:
        cap = advice.budget.cap_bytes
    return measured(advice.model_copy(update={"gpu": here}), tell, cap)


def _sugar(weights: str | None, lora_r: int | None, no_quantization: bool) -> list[str]:
    """The settings that the short options stand for; alpha follows the rank, as usual."""
    named = [] if weights is None else [f"weights={weights}"]
    rank = [f"lora.rank={lora_r}", f"lora.alpha={2 * lora_r}"] if lora_r else []
    return named + rank + (["quantization=none"] if no_quantization else [])


@app.command("doctor")
def doctor_command(
    offline: Annotated[bool, typer.Option(help="Do not connect to the model hub.")] = False,
    as_report: Annotated[
        bool, typer.Option("--report", help="Print a block to paste into an issue.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is this machine ready to train? Checks it in some seconds and says how to fix what is wrong.

    Exit codes: 0 ready, 1 a check failed, 130 interrupted.
    """
    from advisor.doctor import examine, report
    from advisor.machine.probe import probe
    from advisor.report.text import print_checks

    machine = probe()
    checks = examine(machine, offline, (lambda line: None) if as_json else tell)
    if as_json:
        say(json.dumps([check.model_dump() for check in checks], indent=2))
    elif as_report:
        say(report(machine, checks))
    else:
        print_checks(checks)
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


def main() -> None:
    """Entry point of `lisa-advise`."""
    set_streams()
    try:
        app(prog_name="lisa-advise")
    except PermissionError as error:
        tell(f"error: {refused(error)}")
        sys.exit(EXIT_USAGE)
