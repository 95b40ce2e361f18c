"""Advice as text (rich) and as a picture; JSON is the Advice itself. The answer comes first."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from advisor.report.cost_text import cost_lines, speed_text
from advisor.report.plan_words import changes, lora_text, storage_text
from advisor.report.summary import batch_words, commands, first_screen, needed_torch
from profiles.own_files import MARK
from profiles.plan import Plan
from profiles.sizes import gib
from profiles.text import counted, printable, two_digits

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.cost.duration import Duration
    from advisor.doctor import Check
    from advisor.memory.forecast import Forecast

VERDICT_STYLES = {
    "FITS": "bold green",
    "TIGHT": "bold yellow",
    "SPILLS": "bold red",
    "OOM": "bold red",
    "UNKNOWN": "bold magenta",
}
SVG_COLUMNS = 80
CONSIDERED_SHOWN = 8


class PlainConsole(Console):
    """A console that prints text as it is: no rich markup, no terminal control codes in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """What rich writes for `renderable`, its own control codes as they are."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(printable(one.text), one.style)


def to_json(advice: Advice) -> str:
    """The advice as one JSON document in ASCII, so that any terminal encoding can carry it."""
    return json.dumps(advice.model_dump(mode="json"), indent=2)


def print_text(advice: Advice, console: Console, why: bool = False) -> None:
    """The advice for a reader: verdict, command and the first screen, or all sections (`why`)."""
    headline = Text(advice.verdict, style=VERDICT_STYLES[advice.verdict])
    console.print(headline.append("  " + advice.summary, style="default"))
    if older := needed_torch(advice):
        console.print(Text("  " + older, style="bold yellow"))
    if typed := commands(advice):
        console.print()
    for command in typed:
        # Not wrapped: a command that is cut in two cannot be pasted. A picture would lose its end.
        shown = _in_lines(command) if console.record else command
        console.print(Text("  " + shown, style="bold cyan"), soft_wrap=True)
    if not why:
        first_screen(advice, console)
        return
    for title, body in _sections(advice):
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 0, 2), expand=False))


def _in_lines(command: str) -> str:
    """A command as lines of a picture; all but the last end with a backslash."""
    width = SVG_COLUMNS - len("    ") - len(" \\")
    lines = textwrap.wrap(command, width, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def print_forecast(forecast: Forecast, card: str, console: Console) -> None:
    """A forecast for a reader: verdict, the four tiers, what is live at the peak, assumptions."""
    headline = Text(forecast.verdict, style=VERDICT_STYLES[forecast.verdict])
    headline.append(f"  on {card}: {forecast.reason}", style="default")
    if not forecast.tiers:
        console.print(headline)
        return
    if forecast.cap_bytes is None:
        pool = gib(forecast.tier("pool").bytes)
        headline = Text(f"The allocator's pool grows to {pool}; no card was named (--vram 8GiB)")
    console.print(headline)
    sample = f"{forecast.text_tokens} text tokens and {counted(forecast.masks, 'mask')} a sample"
    if forecast.image_tokens is not None:
        sample = f"{forecast.image_tokens} image tokens, {sample}"
    if forecast.answer_tokens is not None:
        sample += f", {forecast.answer_tokens} of the tokens supervised"
    console.print(f"  {sample}, micro-batch {forecast.plan.micro_batch}", style="dim")
    if forecast.counted_by:
        console.print(Text(f"  text counted by {forecast.counted_by}", style="dim"))
    tiers = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for tier in forecast.tiers:
        note = tier.source + (f"; {tier.error}" if tier.error else "")
        tiers.add_row(tier.name, gib(tier.bytes), Text(note, style="dim"))
    phases = _pairs((name, gib(size)) for name, size in forecast.phases.items())
    live = sorted(forecast.live_at_peak.items(), key=lambda item: -item[1])
    parts = _pairs((name, gib(size)) for name, size in live)
    assumed = _bullets(Text(text) for text in forecast.assumed)
    for title, body in (("Forecast", tiers), ("Tensors by phase", phases),
                        ("Live at the peak", parts), ("Assumed", assumed)):  # fmt: skip
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 0, 2), expand=False))


def print_checks(checks: Iterable[Check]) -> None:
    """The doctor's checks for a reader."""
    table = Table.grid(padding=(0, 2))
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for check in checks:
        remedy = f"\n-> {check.remedy}" if check.remedy else ""
        status = Text(check.status, style=styles[check.status])
        table.add_row(status, Text(check.name), Text(check.found + remedy))
    PlainConsole().print(table)


def render_svg(advice: Advice) -> str:
    """The same text as an SVG picture, 80 columns wide, in a font that is there."""
    console = PlainConsole(
        record=True,
        file=io.StringIO(),
        width=SVG_COLUMNS,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    print_text(advice, console)
    text = console.export_svg(title="lisa-advise").replace(">", f"><!-- {MARK} -->", 1)
    return re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL)  # of the network


def _sections(advice: Advice) -> Iterator[tuple[str, RenderableType]]:
    if advice.plan is not None:
        yield "Plan", _pairs(plan_lines(advice.plan, advice.duration))
    if advice.budget is not None:
        yield "Memory", _memory(advice)
    if costs := list(cost_lines(advice)):
        yield "Time and disk", _pairs(iter(costs))
    if advice.reasons:
        yield "Why", _bullets(_reason_lines(advice))
    if advice.ladder:
        yield "If memory runs out after all", _ladder(advice)
    if any(candidate.why_not for candidate in advice.considered):
        yield "Also considered", _considered(advice)
    if advice.better is not None:
        yield "Better, on a larger card", _bullets([_better_line(advice)])
    # What this machine lacks does not matter for a card that is not in it.
    notes = advice.findings if advice.what_if else (*advice.findings, *advice.machine.notes)
    if notes:
        yield "Notes", _bullets(Text(str(note)) for note in notes)


def _bullets(lines: Iterable[Text]) -> Table:
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("-", line)
    return table


def _pairs(lines: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    return table


def plan_lines(plan: Plan, duration: Duration | None = None) -> Iterator[tuple[str, str]]:
    """The settings of a plan in words: (name, value); steps in numbers where data is known."""
    layers = plan.profile.decoder.layers
    yield "model", plan.profile.title
    yield "weights", f"{storage_text(plan)}, {plan.dtype} compute, on {plan.device}"
    yield "trains", ", ".join(plan.train)
    if plan.lora is not None:
        yield "LoRA", f"{lora_text(plan)}, alpha {plan.lora.alpha:g}, dropout {plan.lora.dropout:g}"
    yield "batch", batch_words(plan)
    yield "checkpointed", f"{plan.checkpointed_layers} of {layers} decoder layers"
    placed = [counted(plan.host_layers, "decoder layer")] if plan.host_layers else []
    placed += ["embedding and head"] if plan.host_embeddings else []
    if placed:
        yield "on the host", ", ".join(placed)
    if plan.compile:
        yield "compiled", "decoder layers, by torch.compile"
    yield "cached", ", ".join(plan.cached_encoders) or "no encoder"
    state = f"{plan.optimizer}, {plan.optimizer_state} state"
    warmup = _warmup(plan, duration)
    rate = f"{plan.schedule.learning_rate:g} {plan.schedule.shape} after {warmup} of warm-up"
    yield "optimizer", f"{state}, rate {rate}, {counted(plan.schedule.epochs, 'epoch')}"
    if not plan.mixture.reason_seg_alone:
        mixture = plan.mixture.model_dump(exclude={"samples"})
        rates = ", ".join(f"{name} {rate:g}" for name, rate in mixture.items() if rate)
        yield "mixture", f"{rates}; {plan.mixture.samples} samples an epoch"
    yield "hash", plan.content_hash


def _warmup(plan: Plan, duration: Duration | None) -> str:
    """For how many steps the learning rate rises, and out of how many if that is known."""
    asked = plan.schedule.warmup_steps
    if duration is not None:
        steps = duration.epochs * -(-duration.questions // plan.effective_batch)
        return f"{plan.schedule.warmup(steps)} of {counted(steps, 'step')}"
    if asked is None:
        return "a twentieth of the steps (at most 100)"
    return f"{counted(asked, 'step')} (at most half of the run's)"


def _memory(advice: Advice) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    budget = advice.budget
    assert budget is not None
    rows = [
        ("free", budget.free),
        ("- context", budget.context),
        ("- margin", budget.margin),
        ("= usable", budget.usable),
        ("plan needs", advice.needs),
    ]
    for name, number in rows:
        if number is not None:
            table.add_row(name, gib(number.bytes), number.basis, Text(number.source))
    if advice.largest_micro_batch is not None:
        most = f"micro-batch {advice.largest_micro_batch}"
        table.add_row("largest", most, "forecast", Text("that fits with the other settings"))
    if budget.host is not None and advice.host_bytes is not None:
        note = f"of {gib(budget.host.bytes)}: {budget.host.source}"
        table.add_row("host memory", gib(advice.host_bytes), "forecast", Text(note))
    if advice.speed is not None:
        speed, source = speed_text(advice).split(" ", 1)
        table.add_row("speed", f"{speed} /s", advice.speed.basis, Text(source))
    return table


def _reason_lines(advice: Advice) -> Iterator[Text]:
    for reason in advice.reasons:
        line = Text().append(f"{reason.setting} {reason.value}", style="bold")
        yield line.append(f" [{reason.basis}] ", style="dim").append(reason.because)


def _ladder(advice: Advice) -> Table:
    table = Table.grid(padding=(0, 2))
    for number, rung in enumerate(advice.ladder, start=1):
        speed = f"{two_digits(rung.speed.samples_per_second)} /s"
        what = changes(rung.plan, advice.plan)
        table.add_row(f"{number}.", gib(rung.needs.bytes), speed, Text(what))
    return table


def _better_line(advice: Advice) -> Text:
    better = advice.better
    assert better is not None
    card = f"a card of {advice.better_card_gib} GiB" if advice.better_card_gib else "no single card"
    return Text(f"{changes(better.plan, advice.plan)}: {gib(better.needs.bytes)}, {card}")


def _considered(advice: Advice) -> Table:
    others = [candidate for candidate in advice.considered if candidate.why_not]
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for candidate in others[:CONSIDERED_SHOWN]:
        what = f"{changes(candidate.plan, advice.plan)}: {candidate.why_not}"
        table.add_row(
            Text(candidate.verdict, style=VERDICT_STYLES[candidate.verdict]),
            gib(candidate.needs.bytes),
            f"{two_digits(candidate.speed.samples_per_second)} /s",
            Text(what),
        )
    hidden = len(others) - CONSIDERED_SHOWN
    if hidden > 0:
        table.add_row("", "", "", Text(f"and {hidden} more: see --json", style="dim"))
    return table
