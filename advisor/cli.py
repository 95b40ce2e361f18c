"""lisa-advise: parses, asks `advise`, prints. Everything heavy is imported inside the command."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from advisor.preflight import Advice

EXIT_USAGE = 2
MAX_VRAM_BYTES = 2**44  # 16 TiB: anything above is a slip of the unit
_UNITS = {"mib": 2**20, "gib": 2**30, "mb": 10**6, "gb": 10**9}

app = typer.Typer(pretty_exceptions_enable=False)


def parse_size(text: str) -> int:
    """Bytes from a number with a unit. Raises typer.BadParameter.

    A bare number is refused: between 8 GB and 8 GiB lies more than the whole margin.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", text.strip(), re.ASCII)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise typer.BadParameter(f"got {text!r}; give a number and MiB, GiB, MB or GB: 8GiB")
    try:
        size = round(float(match[1]) * unit)
    except OverflowError:
        size = MAX_VRAM_BYTES + 1
    if not 0 < size <= MAX_VRAM_BYTES:
        raise typer.BadParameter(f"got {text!r}; give more than 0 and at most 16384GiB")
    return size


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="Size to train: tiny, 7b, 7b-v1 or 13b. Default: what fits."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Fix a setting of the plan. Repeatable."),
    ] = None,
    vram: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Advise for a card of this size instead, such as 8GiB.",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, if it fits, to FILE.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the advice as one JSON document.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)] = None,
) -> None:
    """What can I train on my GPU, and with which settings?

    Exit codes: 0 fits, 1 does not fit, 2 bad usage, 3 cannot decide, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        if any((model, settings, vram, save, as_json, svg)):
            _fail(f"options of {context.invoked_subcommand} go behind its name")
        return
    from advisor.preflight import advise
    from advisor.probe import probe
    from profiles.plan import PlanError

    try:
        advice = advise(probe(), model, settings or (), vram)
    except PlanError as error:
        _fail(f"these settings cannot run\n{error}")
    if save is not None:
        advice = _saved(advice, save)
    if svg is not None:
        from advisor.report import render_svg

        _write(svg, render_svg(advice))
    try:
        _print(advice, as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich leaves with 1 when the reader has gone
        # A reader such as `head` has seen enough; the answer is still what it is.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(advice.exit_code)


def parse_capability(text: str) -> tuple[int, int]:
    """Compute capability from text such as 8.6. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"--compute-capability: got {text!r}; give a number such as 8.6")
    return int(match[1]), int(match[2])


@app.command("forecast")
def forecast_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the plan."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the longest sample of this data set.")
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(min=32, max=16384, help="Text tokens of a sample. Default: the plan's limit."),
    ] = None,
    masks: Annotated[int, typer.Option(min=1, max=64, help="Masks of a sample.")] = 1,
    vram: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_size, help="Judge by a card of this size."),
    ] = None,
    capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="Of the card. Default: this machine's, else 8.6.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """What will a step of this plan take? Counted without a GPU, in seconds.

    TIGHT: inside the margin that the advice keeps.

    Exit codes: 0 fits (or no card was named), 1 does not fit or the count failed, 2 bad usage,
    3 no figure can be given, 130 interrupted.
    """
    from advisor.child import BadQuestion, RehearsalFailed
    from advisor.forecast import Worst, forecast
    from advisor.preflight import card_for
    from advisor.probe import probe
    from advisor.report import print_forecast
    from profiles.plan import Plan, PlanError

    named = None if capability is None else parse_capability(capability)
    try:
        chosen = Plan.read(plan).override(settings or ())
    except PlanError as error:
        _fail(f"this plan cannot run\n{error}")
    if data_dir is not None and not data_dir.is_dir():
        _fail(f"{data_dir}: no such folder; --data-dir must name ReasonSeg data")
    if data_dir is not None and text_tokens is not None:
        _fail("--data-dir and --text-tokens both name the longest sample; give one of them")
    limits = chosen.tokens
    for name, given, most in (("text_tokens", text_tokens, limits.max_text_tokens),
                              ("masks", masks, limits.max_masks)):  # fmt: skip
        if given is not None and given > most:
            _fail(f"--{name.replace('_', '-')}: got {given}, the plan allows {most}\n"
                  f"    hint: --set tokens.max_{name}={given}")  # fmt: skip
    machine = probe()
    try:
        card = card_for(machine, vram, measure=True)
        found = forecast(
            chosen,
            Worst(text_tokens, masks, data_dir),
            named or card.compute_capability or (8, 6),
            card.cap_bytes,
            card.margin_bytes,
            machine.host_available_bytes if vram is None else None,
            card.context,
        )
    except BadQuestion as error:
        _fail(f"this data cannot be used\n{error}")
    except RehearsalFailed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        from rich.console import Console

        print_forecast(found, card.title, Console(highlight=False))
    raise typer.Exit(found.exit_code)


def _print(advice: Advice, as_json: bool) -> None:
    from rich.console import Console

    from advisor.report import print_text, to_json

    if as_json:
        print(to_json(advice))
        for finding in (*advice.findings, *advice.machine.notes):
            print(finding, file=sys.stderr)
    else:
        print_text(advice, Console(highlight=False))


def _saved(advice: Advice, path: Path) -> Advice:
    """The advice with its plan written to `path` and a command that uses it."""
    import shlex

    if advice.plan is None or advice.command is None:
        print(f"not saved: {advice.verdict}, so there is no plan to train", file=sys.stderr)
        return advice
    _write(path, advice.plan.to_json())
    command = f"lisa-train --plan {shlex.quote(str(path))} --data-dir DIR"
    return advice.model_copy(update={"command": command})


def _write(path: Path, text: str) -> None:
    """Put `text` into `path` whole, or leave what was there."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _fail(f"{path}: cannot be written: {error.strerror}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def main() -> None:
    """Entry point of `lisa-advise`."""
    for stream in (sys.stdout, sys.stderr):
        # An unprintable character in a GPU's or a file's name must not become a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="lisa-advise")


if __name__ == "__main__":
    main()
