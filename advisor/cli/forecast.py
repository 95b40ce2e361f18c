"""lisa-advise forecast and check: the memory that a step of a plan file takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from advisor.cli.options import (
    Card,
    DataDir,
    Json,
    Ram,
    System,
    Vram,
    must_be_data,
    named_card,
    parse_capability,
)
from advisor.memory.worst_sample import Worst
from profiles.command_options import takes
from profiles.exits import EXIT_FAILED, EXIT_UNKNOWN, fail
from profiles.shared_options import Settings, SkipBroken
from profiles.streams import say, tell
from profiles.text import counted

if TYPE_CHECKING:
    from advisor.machine.target import Target
    from advisor.memory.forecast import Forecast
    from profiles.plan import Plan
    from profiles.settings import TokenLimits


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of `lisa-advise check`, in the order of its help: a plan, and a card."""

    panels: ClassVar[Mapping[str, str]] = {}

    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")]
    settings: Settings = None
    data_dir: DataDir = None
    skip_broken: SkipBroken = None
    gpu: Card = None
    vram: Vram = None
    ram: Ram = None
    system: System = None
    as_json: Json = False

    def chosen(self) -> Plan:
        """The plan with its --set."""
        from profiles.findings import PlanError
        from profiles.overrides import of_another
        from profiles.plan import Plan

        try:
            base = Plan.read(self.plan)
            plan = base.override(self.settings or ())
        except PlanError as error:
            fail(f"this plan cannot run\n{error}")
        if note := of_another(base.model, plan.model):
            tell(note)
        return plan


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(PlanOptions):
    """The options of `lisa-advise forecast`: the worst sample, too."""

    text_tokens: Annotated[
        int | None,
        typer.Option(min=32, max=16384, help="Text tokens of a sample. Default: the plan's limit."),
    ] = None
    masks: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Masks of a sample. Default: the data's or the plan's."),
    ] = None
    capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="The card's. Default: this machine's, else 8.6.",
        ),
    ] = None

    def check(self, limits: TokenLimits) -> None:
        """End with exit code 2 where a sample is named twice, or is longer than the plan allows."""
        if self.data_dir is not None and self.text_tokens is not None:
            fail("--data-dir and --text-tokens both name the longest sample; give one of them")
        for name, given, most in (("text_tokens", self.text_tokens, limits.max_text_tokens),
                                  ("masks", self.masks, limits.max_masks)):  # fmt: skip
            if given is not None and given > most:
                fail(f"--{name.replace('_', '-')}: got {given}, the plan allows {most}\n"
                      f"    hint: --set tokens.max_{name}={given}")  # fmt: skip


@takes(ForecastOptions)
def forecast_command(context: typer.Context, options: ForecastOptions) -> None:
    """How much memory will a step of this plan take? Needs some seconds and no GPU.

    TIGHT: inside the margin that the advice keeps.

    Exit codes: 0 fits (or no card was named), 1 does not fit or the count failed, 2 bad usage,
    3 no figure can be given, 130 interrupted.
    """
    capability = None if options.capability is None else parse_capability(options.capability)
    chosen = options.chosen()
    options.check(chosen.tokens)
    worst = Worst(options.text_tokens, options.masks, options.data_dir)
    found, card = _forecast(options, chosen, worst, capability)
    if options.as_json:
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
    options: PlanOptions,
    plan: Plan,
    worst: Worst,
    capability: tuple[int, int] | None = None,
    strict: bool = False,
) -> tuple[Forecast, str]:
    """The forecast of a plan on the card that is named or here, and that card's name.

    `strict` ends with exit code 2 where the card cannot compute what the plan does.
    """
    from advisor.cli.output import advice_errors
    from advisor.machine.cuda_context import installed
    from advisor.machine.probe import probe
    from advisor.machine.target import gpu_for, pick_gpu
    from advisor.machine.torch_builds import older_build
    from advisor.memory.card import card_for
    from advisor.memory.forecast import forecast
    from advisor.request import must_have_cards, unable, unfit_segments
    from profiles.findings import PlanError

    must_be_data(options.data_dir, options.skip_broken)
    target = named_card(options.vram, options.gpu, options.system, options.ram)
    _must_name_enough(plan, target)
    machine = probe()
    here = pick_gpu(machine) if target is None else None
    if here is not None and (note := unfit_segments(machine, here, plan)):
        tell(f"note: {note}")
    gpu = here or gpu_for(machine, target)
    if gpu is not None and (older := older_build(gpu, installed("torch") if here else "")):
        tell(f"note: {older}")
    windows = target.windows if target else machine.platform == "windows"
    lacks = [] if gpu is None else unable(gpu, plan, windows)
    if lacks and strict:
        fail(f"this plan cannot run there\n{PlanError(lacks)}")
    for lack in lacks:
        tell(f"note: {lack}")
    with advice_errors():
        each = plan.local_processes
        if target is None:
            must_have_cards(machine, [f"processes={each}", f"device={plan.device}"])
        card = card_for(machine, target, measure=True, count=each, nodes=plan.nodes)
        if capability is not None:
            card = replace(card, compute_capability=capability)
        found = forecast(plan, worst, card)
    return found, card.title


def _must_name_enough(plan: Plan, target: Target | None) -> None:
    """Note which cards are meant. Ends with exit code 2 where fewer are named than a plan needs.

    A card that is named without a number stands for all of them.
    """
    from advisor.report.findings import open_name

    if target is None:
        return
    for note in open_name(target):
        tell(f"note: {note}")
    each = plan.local_processes
    if target.count == 1 < each:
        tell(f"note: the plan runs {each} processes on a machine: {each} such cards are meant")
    if 1 < target.count < each:
        what = f"--gpu names {target.count} cards"
        fail(f"{what}, but the plan runs {each} processes on a machine\n"
             f"    hint: --set processes={target.count * plan.nodes}")  # fmt: skip
    if target.count > each:
        has = counted(each, "process", "processes")
        tell(f"note: --gpu names {target.count} cards, but the plan runs {has} on a machine: "
             f"--set processes={target.count * plan.nodes} uses all")  # fmt: skip


@takes(PlanOptions)
def check_command(context: typer.Context, options: PlanOptions) -> None:
    """Does this plan still fit that card, with these versions? One line, for CI.

    Exit codes: 0 fits, 1 does not fit (or only inside the margin), 2 bad usage or a card that
    cannot compute the plan, 3 no figure can be given or no card is known, 130 interrupted.
    """
    found, card = _forecast(options, options.chosen(), Worst(data=options.data_dir), strict=True)
    verdict = "UNKNOWN" if found.cap_bytes is None else found.verdict
    if options.as_json:
        say(found.model_dump_json(indent=2))
    else:
        name = f"{found.plan.model} {found.plan.content_hash}"
        place = "" if found.cap_bytes is None else f" on {card}"
        say(f"{verdict}  {name}{place}: {found.reason}")
    raise typer.Exit({"FITS": 0, "UNKNOWN": EXIT_UNKNOWN}.get(verdict, EXIT_FAILED))
