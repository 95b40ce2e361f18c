"""lisa-advise: parses, asks `advise`, prints. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from advisor.cli import table as table_cli
from profiles.files import reason, refused, write_whole
from profiles.streams import say, set_streams, tell
from profiles.text import argument

if TYPE_CHECKING:
    from advisor.memory.forecast import Forecast
    from advisor.preflight import Advice
    from advisor.request import Target

EXIT_USAGE = 2
PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf")
MAX_VRAM_BYTES = 2**44  # 16 TiB: anything above is a slip of the unit
_UNITS = {"mib": 2**20, "gib": 2**30, "mb": 10**6, "gb": 10**9}

app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(table_cli.app, name="table")


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


Text = str | None
Vram = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=parse_size, help="For a card of this size, such as 8GiB."),
]
Card = Annotated[Text, typer.Option(metavar="NAME", help='For this card, such as "RTX 3060 12GB".')]
System = Annotated[
    Text, typer.Option("--os", help="With --vram or --gpu: linux (default) or windows.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Fix a setting of the plan. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Take the longest sample of this data set.")
]
SkipBroken = Annotated[
    Text, typer.Option(metavar="N|all", help="Leave at most N broken entries of the data out.")
]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[
        Text,
        typer.Option(help="Size: tiny, 7b, 7b-v1, 13b or 13b-v1. Default: what fits."),
    ] = None,
    settings: Settings = None,
    weights: Annotated[
        Text, typer.Option(metavar="FOLDER", help="Model folder of lisa-train convert, or random.")
    ] = None,
    lora_r: Annotated[
        int | None, typer.Option("--lora-r", min=1, max=256, help="Fix LoRA's rank.")
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
        bool, typer.Option("--measure", help="Try the plan on this GPU: three steps, once.")
    ] = False,
    emulate_vram: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Try here what a smaller card would get."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, if it fits, to FILE.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw one step's memory into a picture.")
    ] = None,
    explain: Annotated[
        Text, typer.Option(metavar="COMPONENT", help="Say what a part of the memory is, and stop.")
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
            _fail(f"options of {context.invoked_subcommand} go behind its name")
        return
    if explain is not None:
        from advisor.report.glossary import explain as explained

        try:
            say(explained(explain))
        except ValueError as error:
            _fail(f"--explain: {error}")
        return
    from advisor.machine.probe import probe
    from advisor.preflight import advise, live_forecast
    from advisor.rehearsal import BadQuestion, RehearsalFailed
    from profiles.plan import PlanError

    if emulate_vram is not None and (vram or gpu):
        _fail("--emulate-vram names the card itself; leave --vram and --gpu out")
    if measure and (vram or gpu):
        _fail("--measure needs the card here; --emulate-vram SIZE tries a smaller one's plan")
    for path in (save, plot):
        _must_be_writable(path)
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        _fail(f"--plot: got {plot.name}; the name must end in one of {', '.join(PLOT_SUFFIXES)}")
    target = _target(vram or emulate_vram, gpu, system)
    _must_be_data(data_dir, skip_broken)
    assignments = [*(settings or ()), *_sugar(weights, lora_r, no_quantization)]
    _must_agree(assignments)
    machine = probe()
    try:
        live = live_forecast(machine, target, data_dir, tell)
        advice = advise(machine, model, assignments, target, data=data_dir, live=live)
        if measure or emulate_vram is not None:
            advice = _tried(advice, emulated=emulate_vram is not None)
        if plot is not None:
            _plot(advice, plot)
    except PlanError as error:
        _fail(f"these settings cannot run\n{error}")
    except BadQuestion as error:
        _fail(f"this data cannot be used\n{error}")
    except RehearsalFailed as error:
        tell(f"error: {error}")
        raise typer.Exit(1) from None
    if save is not None:
        advice = _saved(advice, save)
    if svg is not None:
        from advisor.report.text import render_svg

        write(svg, render_svg(advice))
    try:
        _print(advice, as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich leaves with 1 when the reader has gone
        # A reader such as `head` has seen enough; the answer is still what it is.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(advice.exit_code)


def _tried(advice: Advice, emulated: bool) -> Advice:
    """The advice after a trial on this machine's GPU, under a smaller card's cap if `emulated`."""
    from advisor.choice.rank import pick_gpu
    from advisor.dry_run import measured

    here = pick_gpu(advice.machine)
    if here is None:
        _fail("there is no GPU here to try a plan on\n    hint: --vram SIZE advises without one")
    cap = None
    if emulated and advice.budget is not None:
        cap = advice.budget.cap_bytes
    return measured(advice.model_copy(update={"gpu": here}), tell, cap)


def _plot(advice: Advice, path: Path) -> None:
    """Draw a step of the advised plan; a plan on the CPU, or none, has no picture."""
    from advisor.memory.forecast import Worst, timeline
    from advisor.report.plot import draw

    if advice.plan is None or advice.gpu is None or advice.budget is None or not advice.needs:
        tell("not drawn: there is no plan on a card")
        return
    tell(f"following a step of {advice.plan.model}, some seconds ...")
    told = advice.forecast
    masks, answers = (told.masks, told.answer_tokens) if told else (None, None)
    text = advice.text_tokens or advice.plan.tokens.max_text_tokens
    worst = Worst(text, masks, answer_tokens=answers)
    found = timeline(advice.plan, worst, advice.gpu.compute_capability or (8, 6))
    title = f"{advice.model} on {advice.gpu.name}: one step, micro-batch {advice.plan.micro_batch}"
    if advice.plan.accumulation > 2:
        title += f" (2 of {advice.plan.accumulation} shown, all alike)"
    try:
        draw(found, title, advice.needs.bytes, advice.budget.usable.bytes, path)
    except OSError as error:
        _fail(f"{path}: cannot be written: {reason(error)}")


def _sugar(weights: str | None, lora_r: int | None, no_quantization: bool) -> list[str]:
    """The settings that the short options stand for; alpha follows the rank, as usual."""
    named = [] if weights is None else [f"weights={weights}"]
    rank = [f"lora.rank={lora_r}", f"lora.alpha={2 * lora_r}"] if lora_r else []
    return named + rank + (["quantization=none"] if no_quantization else [])


def _must_agree(assignments: list[str]) -> None:
    """Ends with exit code 2 where one setting is given two values."""
    from advisor.choice.rank import assigned

    given: dict[str, str] = {}
    for text in assignments:
        for key, value in assigned([text]).items():
            if given.setdefault(key, value) != value:
                _fail(f"{key}: got {given[key]} and {value}; give it once")


def _target(vram: int | None, gpu: str | None, system: str | None) -> Target | None:
    """The card that the options name, if any. Ends with exit code 2 on a contradiction."""
    from advisor.request import Target
    from profiles.gpus import find_gpu

    if system not in (None, "linux", "windows"):
        _fail(f"--os: got {system!r}; give linux or windows")
    if vram is None and gpu is None:
        if system is not None:
            _fail("--os goes with --vram or --gpu; this machine's system is known")
        return None
    if vram is not None and gpu is not None:
        _fail("--vram and --gpu both name a card; give one of them")
    try:
        card = None if gpu is None else find_gpu(gpu)
    except ValueError as error:
        # Whatever is wrong with the name, the size alone is enough to go on.
        _fail(f"--gpu: {error}\n    hint: a card that is not listed: --vram SIZE, such as 8GiB")
    return Target(vram, card, windows=system == "windows")


def _must_be_data(folder: Path | None, skip_broken: str | None) -> None:
    """Ends with exit code 2 for no data; what may be left out of it is announced."""
    from profiles.skipping import VARIABLE, announce, announced, read_most
    from profiles.splits import NEEDED, located

    if folder is not None and not folder.is_dir():
        _fail(f"{folder}: no such folder; --data-dir must name ReasonSeg data")
    if folder is not None and located(folder) is None:
        _fail(f"{folder}: --data-dir must name ReasonSeg data; needed: {NEEDED}")
    if skip_broken is not None and folder is None:
        _fail("--skip-broken goes with --data-dir")
    try:
        if skip_broken is not None:
            announce(read_most(skip_broken))
        else:
            announced()
    except ValueError as error:
        _fail(str(error) if skip_broken is not None else f"{VARIABLE}: {error}")


def _must_be_writable(path: Path | None) -> None:
    """Ends with exit code 2 before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        _fail(f"{path}: cannot be written: is a folder")
    if not path.parent.is_dir():
        _fail(f"{path}: cannot be written: no folder {path.parent} to write into")
    if not os.access(path.parent, os.W_OK):
        _fail(f"{path}: cannot be written: no right to write into {path.parent}\n"
              "    hint: name another folder, or change its rights")  # fmt: skip


def parse_capability(text: str) -> tuple[int, int]:
    """Compute capability from text such as 8.6. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"--compute-capability: got {text!r}; give a number such as 8.6")
    return int(match[1]), int(match[2])


@app.command("forecast")
def forecast_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")],
    settings: Settings = None,
    data_dir: DataDir = None,
    skip_broken: SkipBroken = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(min=32, max=16384, help="Text tokens of a sample. Default: the plan's limit."),
    ] = None,
    masks: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Masks of a sample. Default: the data's or the plan's."),
    ] = None,
    gpu: Card = None,
    vram: Vram = None,
    system: System = None,
    capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="Of the card. Default: this machine's, else 8.6.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What will a step of this plan take? Counted without a GPU, in seconds.

    TIGHT: inside the margin that the advice keeps.

    Exit codes: 0 fits (or no card was named), 1 does not fit or the count failed, 2 bad usage,
    3 no figure can be given, 130 interrupted.
    """
    found, card = _forecast(
        plan, settings, data_dir, skip_broken, text_tokens, masks, gpu, vram, system, capability
    )
    if as_json:
        say(found.model_dump_json(indent=2))
    else:
        from advisor.memory.forecast import fitting_micro_batch
        from advisor.report.text import PlainConsole, print_forecast

        print_forecast(found, card, PlainConsole())
        smaller = fitting_micro_batch(found) if found.verdict == "OOM" else None
        if smaller is not None:
            say(f"\nhint: --set micro_batch={smaller} should fit")
    raise typer.Exit(found.exit_code)


def _forecast(
    path: Path,
    settings: list[str] | None,
    data_dir: Path | None,
    skip_broken: str | None,
    text_tokens: int | None,
    masks: int | None,
    gpu: str | None,
    vram: int | None,
    system: str | None,
    capability: str | None,
) -> tuple[Forecast, str]:
    """The forecast of a plan file on the card that is named or here, and that card's name."""
    from advisor.choice.rank import pick_gpu
    from advisor.machine.probe import probe
    from advisor.memory.forecast import Worst, forecast
    from advisor.preflight import card_for
    from advisor.rehearsal import BadQuestion, RehearsalFailed
    from advisor.request import unfit_segments
    from profiles.plan import Plan, PlanError

    named = None if capability is None else parse_capability(capability)
    try:
        chosen = Plan.read(path).override(settings or ())
    except PlanError as error:
        _fail(f"this plan cannot run\n{error}")
    _must_be_data(data_dir, skip_broken)
    target = _target(vram, gpu, system)
    if data_dir is not None and text_tokens is not None:
        _fail("--data-dir and --text-tokens both name the longest sample; give one of them")
    limits = chosen.tokens
    for name, given, most in (("text_tokens", text_tokens, limits.max_text_tokens),
                              ("masks", masks, limits.max_masks)):  # fmt: skip
        if given is not None and given > most:
            _fail(f"--{name.replace('_', '-')}: got {given}, the plan allows {most}\n"
                  f"    hint: --set tokens.max_{name}={given}")  # fmt: skip
    machine = probe()
    here = pick_gpu(machine) if target is None else None
    if here is not None and (note := unfit_segments(machine, here, chosen)):
        tell(f"note: {note}")
    try:
        card = card_for(machine, target, measure=True)
        found = forecast(
            chosen,
            Worst(text_tokens, masks, data_dir),
            named or card.compute_capability or (8, 6),
            card.cap_bytes,
            card.margin_bytes,
            card.host_bytes,
            card.context,
        )
    except BadQuestion as error:
        _fail(f"this data cannot be used\n{error}")
    except RehearsalFailed as error:
        tell(f"error: {error}")
        raise typer.Exit(1) from None
    return found, card.title


@app.command("check")
def check_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")],
    settings: Settings = None,
    data_dir: DataDir = None,
    skip_broken: SkipBroken = None,
    gpu: Card = None,
    vram: Vram = None,
    system: System = None,
    as_json: Json = False,
) -> None:
    """Does this plan still fit that card, with these versions? One line, for CI.

    Exit codes: 0 fits, 1 does not fit (or only inside the margin), 2 bad usage, 3 no figure can be
    given or no card is known, 130 interrupted.
    """
    found, card = _forecast(
        plan, settings, data_dir, skip_broken, None, None, gpu, vram, system, None
    )
    verdict = "UNKNOWN" if found.cap_bytes is None else found.verdict
    if as_json:
        say(found.model_dump_json(indent=2))
    else:
        name = f"{found.plan.model} {found.plan.content_hash}"
        say(f"{verdict}  {name} on {card}: {found.reason}")
    raise typer.Exit({"FITS": 0, "UNKNOWN": 3}.get(verdict, 1))


@app.command("doctor")
def doctor_command(
    offline: Annotated[bool, typer.Option(help="Do not ask the model hub.")] = False,
    as_report: Annotated[
        bool, typer.Option("--report", help="Print a block to paste into an issue.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is this machine ready to train? Each check with its remedy; takes some seconds.

    Exit codes: 0 ready, 1 a check failed, 130 interrupted.
    """
    from advisor.machine.doctor import examine, report
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


def _print(advice: Advice, as_json: bool) -> None:
    from advisor.report.text import PlainConsole, print_text, to_json

    if as_json:
        say(to_json(advice))
        for finding in (*advice.findings, *advice.machine.notes):
            tell(str(finding))
    else:
        print_text(advice, PlainConsole())


def _saved(advice: Advice, path: Path) -> Advice:
    """The advice with its plan written to `path` and a command that uses it."""
    from advisor.request import weights_needed
    from profiles.skipping import option

    if advice.plan is None or advice.command is None:
        tell(f"not saved: {advice.verdict}, so there is no plan to train")
        return advice
    write(path, advice.plan.to_json())
    needed = weights_needed(advice.plan.model, advice.plan.weights)
    command = f"lisa-train --plan {argument(path)}{needed} --data-dir DIR{option()}"
    return advice.model_copy(update={"command": command})


def write(path: Path, text: str) -> None:
    """Put `text` into `path` whole, or leave what was there."""
    try:
        write_whole(path, text)
    except OSError as error:
        _fail(f"{path}: cannot be written: {reason(error)}")


def _fail(message: str) -> NoReturn:
    tell(f"error: {message}")
    raise typer.Exit(EXIT_USAGE)


def main() -> None:
    """Entry point of `lisa-advise`."""
    set_streams()
    try:
        app(prog_name="lisa-advise")
    except PermissionError as error:
        tell(f"error: {refused(error)}")
        sys.exit(EXIT_USAGE)
