"""lisa-advise: parses, calls `advise`, prints. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import table
from advisor.cli.advise_options import AdviseOptions
from advisor.cli.advising import advised
from advisor.cli.explain_oom import explain_oom_command
from advisor.cli.forecast import check_command, forecast_command
from advisor.cli.options import Json
from advisor.cli.output import (
    advice_errors,
    print_advice,
    saved,
    with_forecast,
    write,
    write_plot,
)
from advisor.cli.report import report_command
from profiles.command_line import Commands, model_names
from profiles.command_options import must_be_bare, takes
from profiles.exits import EXIT_USAGE, fail
from profiles.files import refused
from profiles.streams import say, set_streams, tell

if TYPE_CHECKING:
    from advisor.advice import Advice


app = Commands(
    examples=(
        'lisa-advise --gpu "RTX 3060 12GB" --data-dir DIR',
        "lisa-advise --vram 8GiB --save plan.json",
    )
)
app.add_typer(table.app, name="table")
app.command("forecast", examples=["lisa-advise forecast plan.json --vram 8GiB"])(forecast_command)
app.command("check", examples=['lisa-advise check plan.json --gpu "RTX 3060 12GB"'])(check_command)
app.command(
    "explain-oom",
    examples=[
        'lisa-advise explain-oom "CUDA out of memory. Tried to allocate 20.00 MiB"',
        "python train.py 2>&1 | lisa-advise explain-oom -",
    ],
)(explain_oom_command)
app.command("report", examples=["lisa-advise report out.html --vram 8GiB"])(report_command)


@app.callback(invoke_without_command=True)
@takes(AdviseOptions)
def run(context: typer.Context, options: AdviseOptions) -> None:
    """What can I train on my GPU, and with which settings?

    Exit codes: 0 fits, 1 does not fit, 2 bad usage, 3 cannot decide, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return must_be_bare(context, options)
    if options.explain is not None:
        _explain(options.explain)
        return
    advice = _advised(options)
    if options.save is not None:
        advice = saved(advice, options.save)
    if options.svg is not None:
        from advisor.report.text import render_svg

        write(options.svg, render_svg(advice))
    try:
        print_advice(advice, options.as_json, options.why)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich leaves with 1 when the reader has gone
        # A reader such as `head` has seen enough; the answer is still what it is.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(advice.exit_code)


def _explain(component: str) -> None:
    """Print what a word of the answer means."""
    from advisor.report.glossary import explain

    try:
        say(explain(component))
    except ValueError as error:
        fail(f"--explain: {error}")


def _advised(options: AdviseOptions) -> Advice:
    """The advice that the options ask for, tried and drawn where they say so."""
    options.check()
    emulated = options.emulate_vram
    advice, live = advised(options, options.plot is not None, emulated)
    with advice_errors():
        if options.measure or emulated is not None:
            advice = _tried(advice, emulated is not None)
        if options.plot is not None:
            advice = with_forecast(advice, live)
            write_plot(advice, live, options.plot)
    return advice


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


@app.command("doctor", examples=["lisa-advise doctor --model 7b", "lisa-advise doctor --report"])
def doctor_command(
    model: Annotated[
        str | None,
        typer.Option(
            help="Check the disk for room for this model. Default: the one advised here.",
            autocompletion=model_names,
        ),
    ] = None,
    offline: Annotated[bool, typer.Option(help="Do not connect to the model hub.")] = False,
    as_report: Annotated[
        bool, typer.Option("--report", help="Print a block to paste into an issue.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is this machine ready to train? Checks it in some seconds and says how to fix what is wrong.

    Exit codes: 0 ready, 1 a check failed, 130 interrupted.
    """
    from advisor.doctor import answer, examine, report
    from advisor.machine.probe import probe
    from advisor.report.text import print_checks
    from advisor.request import wanted_model

    if as_json and as_report:
        fail("--json and --report: give one of the two")
    machine = probe()
    with advice_errors():
        wanted = wanted_model(model, None)
    checks = examine(machine, offline, (lambda line: None) if as_json else tell, wanted)
    if as_json:
        found = [check.model_dump() for check in checks]
        say(json.dumps({"answer": answer(machine, checks), "checks": found}, indent=2))
    elif as_report:
        say(f"{report(machine, checks)}\n{answer(machine, checks)}")
    else:
        print_checks(checks)
        say(f"\n{answer(machine, checks)}")
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


def main() -> None:
    """Entry point of `lisa-advise`."""
    set_streams()
    try:
        app(prog_name="lisa-advise")
    except PermissionError as error:
        tell(f"error: {refused(error)}")
        sys.exit(EXIT_USAGE)
