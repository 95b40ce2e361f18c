"""The first screen of an advice: what, how much, what to type. `--why` prints the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.report.cost_text import cost_lines
from advisor.report.memory_bar import bar, legend
from advisor.report.plan_words import changes, lora_text, storage_text
from profiles.plan import Plan
from profiles.preferences import PREFERENCES, Preference
from profiles.sizes import gib
from profiles.text import counted, printable

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.choice.candidate import Candidate

WORTH_SAYING = 0.02  # of the speed, or of the usable memory: less is no alternative


def first_screen(advice: Advice, console: Console) -> None:
    """Print plan, memory, alternatives and the first notes below the command."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for title, body in _lines(advice, console):
        table.add_row(title, body)
    if table.rows:
        console.print()
        console.print(table)


def _lines(advice: Advice, console: Console) -> Iterator[tuple[str, Text]]:
    plan = advice.plan
    if any(reason.setting == "model" for reason in advice.reasons) and plan and plan.profile.start:
        yield "model", Text(plan.profile.start)
    if plan is not None:
        yield "plan", Text(plan_line(plan))
    if advice.budget is not None and advice.needs is not None and advice.plan is not None:
        yield "memory", bar(advice, console)
        yield "", Text(legend(advice))
    if advice.budget is not None and advice.budget.host is not None and advice.host_bytes:
        host = advice.budget.host
        yield "host", Text(f"{gib(advice.host_bytes)} of {gib(host.bytes)}: {host.source}")
    costs = [(title, Text(text)) for title, text in cost_lines(advice) if title != "features"]
    if advice.command:
        yield from costs
    if advice.speed is not None and not costs:
        yield "speed", Text(_speed(advice))
    for title, text in alternatives(advice):
        yield title, Text(text)
    yield from _notes(advice)


def plan_line(plan: Plan) -> str:
    """The plan in one sentence."""
    words = [f"{storage_text(plan)}, LoRA {lora_text(plan)}" if plan.lora else storage_text(plan)]
    if plan.compile:
        words.append("compiled")
    layers = plan.profile.decoder.layers
    if plan.checkpointed_layers:
        words.append(f"{plan.checkpointed_layers} of {layers} layers checkpointed")
    placed = [counted(plan.host_layers, "layer")] if plan.host_layers else []
    placed += ["embeddings"] if plan.host_embeddings else []
    if placed:
        words.append(f"{' and '.join(placed)} in host memory")
    return f"{', '.join(words)}; {batch_words(plan)}"


def batch_words(plan: Plan) -> str:
    """Questions of a step, and how they are divided."""
    each = counted(plan.micro_batch, "picture")
    if plan.questions_per_picture > 1:
        each += f" with up to {plan.questions_per_picture}"
    passes = f"{plan.accumulation} passes of " if plan.accumulation > 1 else ""
    processes = f" in {plan.processes} processes" if plan.processes > 1 else ""
    return f"{counted(plan.effective_batch, 'question')} a step: {passes}{each}{processes}"


def _speed(advice: Advice) -> str:
    assert advice.speed is not None
    return f"{advice.speed.samples_per_second:.2g} questions/s, {advice.speed.source}"


def alternatives(advice: Advice) -> Iterator[tuple[str, str]]:
    """(title, text) of what another order of preference, or a larger card, gains and costs."""
    best = advice.considered[0] if advice.considered else None
    if best is None or best.verdict != "FITS" or advice.budget is None:
        return
    for order, other in advice.alternatives.items():
        if _is_worth_saying(order, other, best, advice.budget.usable.bytes):
            told = f"{changes(other.plan, best.plan)}: {change(other, best)}"
            yield order, told
    if advice.better is not None and advice.better_card_gib is not None:
        told = f"{changes(advice.better.plan, best.plan)}: {change(advice.better, best)}"
        yield f"{advice.better_card_gib} GiB", told


def _is_worth_saying(
    order: Preference | str, other: Candidate, best: Candidate, usable: int
) -> bool:
    """Whether another order's plan gains something by its own measure."""
    if order == "speed":
        speeds = other.speed.samples_per_second, best.speed.samples_per_second
        return speeds[0] > (1 + WORTH_SAYING) * speeds[1]
    if order == "precision":
        return other.plan.quantization != best.plan.quantization
    if order == "headroom":
        return best.needs.bytes - other.needs.bytes > WORTH_SAYING * usable
    return True


def change(other: Candidate, best: Candidate) -> str:
    """What one plan gains and costs against another, in speed and memory of the card."""
    share = other.speed.samples_per_second / best.speed.samples_per_second - 1
    pace = "as fast"
    if abs(share) >= WORTH_SAYING:
        pace = f"{abs(share):.0%} {'faster' if share > 0 else 'slower'}"
    more = other.needs.bytes - best.needs.bytes
    return f"{pace}, {gib(abs(more))} {'more' if more > 0 else 'less'}"


def _notes(advice: Advice) -> Iterator[tuple[str, Text]]:
    """What to do first, and how many notes there are; all of them where the plan cannot run."""
    # What this machine lacks does not matter for a card that is not in it.
    notes = advice.findings if advice.what_if else (*advice.findings, *advice.machine.notes)
    if advice.exit_code or advice.budget is None:
        for note in notes:
            yield "note", Text(printable(" ".join(str(note).split()).replace(" hint: ", " -> ")))
        return
    plan = advice.plan
    if plan is not None and any(note.where == "weights" for note in notes):
        yield "first", Text(plan.profile.conversion)
    also = [f"--why prints the reasons and {counted(len(notes), 'note')}"]
    if any(title in PREFERENCES for title, _ in alternatives(advice)):
        also.append("--prefer takes another plan")
    yield "more", Text("; ".join(also), style="dim")
