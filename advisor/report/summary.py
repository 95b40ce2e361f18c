"""The first screen of an advice: what, how much, what to type. `--why` prints the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.choice.preference import behind, fastest_of
from advisor.machine.torch_builds import TORCH
from advisor.report.cost_text import cost_lines, shorter, sparing_text, speed_text
from advisor.report.findings import BATCH, DATA, OPEN_NAME, UNIT
from advisor.report.fp8_text import fp8_text
from advisor.report.memory_bar import bar, legend
from advisor.report.plan_words import changes, lora_text, storage_text
from profiles.batches import full_rows
from profiles.pictures import shrinks_pictures
from profiles.plan import Plan
from profiles.preferences import PREFERENCES, Preference
from profiles.sizes import GIB, gib
from profiles.text import counted, printable

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.choice.candidate import Candidate
    from profiles.findings import Finding

SCREEN_LINES = 24
TITLE_COLUMNS = 10
LEAST_BYTES = GIB // 200  # of a difference that is shown, in two digits
LATER = "features", "FP8"  # the former with --why, the latter among the notes
WORTH_SAYING = 0.02  # of the speed, or of the usable memory: less is no alternative


Row = tuple[str, Text]  # its title and what it says


def first_screen(advice: Advice, console: Console) -> None:
    """Print plan and memory, and as many other plans and notes as there is room for."""
    rows = list(_lines(advice, console))
    others = [(title, Text(text)) for title, text in alternatives(advice)]
    notes = [("note", Text(note)) for note in _notes(advice)]
    if advice.exit_code or advice.budget is None:
        rows += others + notes
    else:
        room = SCREEN_LINES - _head_lines(advice, console) - 1
        for text, less in _spare(advice):
            if _height(rows, console) <= room:
                break
            rows = [_instead(row, text, less) for row in rows]
            rows = [row for row in rows if row[1].plain]
        while others and _height(rows + others, console) > room:
            others.pop()
        rows += others
        shown = _that_fit(notes, rows, room, console)
        rows += shown
        rows.append(("more", Text(_more(advice, len(notes) - len(shown)), style="dim")))
    if rows:
        console.print()
        console.print(_table(rows))


def _instead(row: Row, text: str, less: str) -> Row:
    return (row[0], Text(less)) if row[1].plain == text else row


def _spare(advice: Advice) -> list[tuple[str, str]]:
    """What is left to --why if the screen is full, the least needed first; and what the screen
    then says instead, if anything."""
    saved = sparing_text(advice.duration, advice.disk) if advice.duration else ""
    once = [_data_text(note) for note in advice.findings
            if note.where == DATA and note.fix.startswith("--set")]  # fmt: skip
    gone = [saved, *once, advice.plan.profile.start if advice.plan else ""]
    return [*((text, "") for text in gone), *shorter(advice)]


def _data_text(note: Finding) -> str:
    return f"{note.what}; {note.fix}"


def _that_fit(notes: list[Row], rows: list[Row], room: int, console: Console) -> list[Row]:
    """As many notes as have a line below the rows; whole where all of these have room."""
    shown = notes[: max(0, room - _height(rows, console))]
    if not shown or _height([*rows, *shown], console) <= room:
        return shown
    width = console.width - TITLE_COLUMNS
    short = (shorten(note.plain, width, placeholder=" ...") for _, note in shown)
    return [("note", Text(note)) for note in short]


def commands(advice: Advice) -> list[str]:
    """What to type, in order: the conversion of published weights, if they are needed, first."""
    if advice.command is None:
        return []
    plan = advice.plan
    published = plan is not None and plan.weights == "default" and not plan.profile.packaged
    typed = advice.command.splitlines()
    return [*([plan.profile.conversion] if plan and published else []), *typed]


def needed_torch(advice: Advice) -> str:
    """Which torch to install first, for a card that the usual builds do not support; else ''.

    It comes right below the verdict, because nothing else works without it.
    """
    older = next((one for one in advice.findings if one.where == TORCH), None)
    return "" if older is None else f"first {older.fix}"


def _table(rows: Iterable[Row]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for title, body in rows:
        table.add_row(title, body)
    return table


def _height(rows: Iterable[Row], console: Console) -> int:
    return len(console.render_lines(_table(rows)))


def _head_lines(advice: Advice, console: Console) -> int:
    """Lines of the verdict, the command and the empty ones around it."""
    head = [len(advice.verdict) + 2 + len(advice.summary)]
    head += [2 + len(text)] if (text := needed_torch(advice)) else []
    head += [2 + len(command) for command in commands(advice)]
    return sum(-(-length // console.width) for length in head) + 2


def _lines(advice: Advice, console: Console) -> Iterator[Row]:
    plan = advice.plan
    for note in advice.findings:
        if note.where in (OPEN_NAME, UNIT):
            yield "card", Text(f"{note.what}; else {note.fix}")
        elif note.where == BATCH:
            yield BATCH, Text(note.what)
        elif note.where == DATA:
            yield "data", Text(_data_text(note))
    chosen = next((one for one in advice.reasons if one.setting == "model"), None)
    if chosen is not None and plan and plan.profile.start:
        yield "model", Text(plan.profile.start)
    elif chosen is not None and chosen.basis == "forecast":  # the one that was wanted does not fit
        yield "model", Text(f"{chosen.value}, because a larger one does not fit: {chosen.because}")
    if plan is not None:
        yield "plan", Text(plan_line(plan))
    if advice.budget is not None and advice.needs is not None and advice.plan is not None:
        yield "memory", bar(advice, console)
        yield "GiB", Text(legend(advice))
    if advice.budget is not None and advice.budget.host is not None and advice.host_bytes:
        host = advice.budget.host
        yield "host", Text(f"{gib(advice.host_bytes)} of {gib(host.bytes)}: {host.source}")
    costs = [(title, Text(text)) for title, text in cost_lines(advice) if title not in LATER]
    if advice.command:
        yield from costs
    if advice.speed is not None and not costs:
        yield "speed", Text(speed_text(advice))


def plan_line(plan: Plan) -> str:
    """The plan in one sentence."""
    words = [f"{storage_text(plan)}, LoRA {lora_text(plan)}" if plan.lora else storage_text(plan)]
    if plan.products == "fp8":
        words.append("FP8 products")
    if plan.compile:
        words.append("compiled")
    layers = plan.profile.decoder.layers
    if plan.checkpointed_layers:
        words.append(f"{plan.checkpointed_layers} of {layers} layers checkpointed")
    placed = [counted(plan.host_layers, "layer")] if plan.host_layers else []
    placed += ["embeddings"] if plan.host_embeddings else []
    if placed:
        words.append(f"{' and '.join(placed)} in host memory")
    if shrinks_pictures(plan):
        words.append(f"pictures of at most {plan.profile.most_image_tokens} tokens")
    return f"{', '.join(words)}; {batch_words(plan)}"


def batch_words(plan: Plan) -> str:
    """How many questions a step has, on how many pictures, and how many pictures run at once."""
    asked, each = plan.effective_batch, plan.questions_per_picture
    rows = "one a picture"
    if each > 1:
        least = full_rows(asked, each)
        rows = f"from {least} to {counted(asked, 'picture')} (up to {each} each)"
    how = "all at once" if plan.micro_batch >= asked else f"{plan.micro_batch} at a time"
    processes = f" in each of {plan.processes} processes" if plan.processes > 1 else ""
    return f"{counted(asked, 'question')} a step, {rows}, {how}{processes}"


def alternatives(advice: Advice) -> Iterator[tuple[str, str]]:
    """(title, text) of what another order of preference, or a larger card, gains and costs."""
    best = advice.considered[0] if advice.considered else None
    if best is None or best.verdict != "FITS" or advice.budget is None:
        return
    if advice.prefer != "usual" and "usual" not in advice.alternatives:
        yield "prefer", f"{advice.prefer} changes nothing here: this is the usual plan"
    seen, fastest = [], fastest_of([best, *advice.alternatives.values()])
    for order, other in advice.alternatives.items():
        worth = _is_worth_saying(order, other, best, advice.budget.usable.bytes)
        if worth and other.plan not in seen:
            seen.append(other.plan)
            text = f"{changes(other.plan, best.plan)}: {change(other, best)}"
            yield order, text + _why_not_usual(order, other, best, advice.prefer, fastest)
    if advice.better is not None and advice.better_card_gib is not None:
        text = f"{changes(advice.better.plan, best.plan)}: {change(advice.better, best)}"
        yield "larger", f"a card of {advice.better_card_gib} GiB: {text}"


def _why_not_usual(
    order: str, other: Candidate, best: Candidate, prefer: Preference, fastest: float
) -> str:
    """Why the usual order does not choose a plan whose weights are rounded less."""
    if prefer != "usual" or order != "precision":
        return ""
    speed = other.speed.samples_per_second
    if other.plan.host_layers <= best.plan.host_layers:
        return f"; {slow}" if (slow := behind(speed, fastest)) else ""
    faster = speed > (1 + WORTH_SAYING) * best.speed.samples_per_second
    return "; the usual order keeps layers on the card" if faster else ""


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
    if abs(more) < LEAST_BYTES:
        return f"{pace}, as much memory"
    return f"{pace}, {gib(abs(more))} {'more' if more > 0 else 'less'}"


def _notes(advice: Advice) -> list[str]:
    """The findings, each as one line; what this machine lacks only where it is asked about."""
    notes = advice.findings if advice.what_if else (*advice.findings, *advice.machine.notes)
    runs = not advice.exit_code  # then a line of its own says what to convert first
    said = OPEN_NAME, UNIT, TORCH, BATCH, DATA, *(["weights"] if runs else [])
    lines = [str(note) for note in notes if note.where not in said]
    if text := fp8_text(advice):
        lines.append(text)
    return [printable(" ".join(line.split()).replace(" hint: ", " -> ")) for line in lines]


def _more(advice: Advice, hidden: int) -> str:
    rest = f"{counted(hidden, 'more note')}" if hidden else "notes in full"
    also = [f"--why: reasons and {rest}"]
    if any(title in PREFERENCES for title, _ in alternatives(advice)):
        also.append("--prefer: another plan")
    return "; ".join(also)
