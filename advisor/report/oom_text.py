"""The explanation of an out-of-memory error as text (rich); JSON is the Explanation itself."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.oom.causes import size
from advisor.oom.explain import Explanation
from advisor.oom.wordings import Message
from profiles.text import counted

_OTHERS_SHOWN = 7
_LEAST_SHARE = 0.005


def print_explanation(told: Explanation, console: Console) -> None:
    """The answer first, then what filled the card, why, and what helps, in this order."""
    headline = Text(told.summary, style="bold" if told.memory else "bold magenta")
    if told.phase:
        headline.append(f", {told.phase}", style="default")
    console.print(headline)
    if told.command:
        console.print()
        # Never wrapped: a command that is cut in two cannot be pasted.
        line = Text("  ").append(told.command, style="bold cyan")
        console.print(line.append("   advises a plan that fits", style="dim"), soft_wrap=True)
    if told.filled:
        _section(console, "What filled the card", _filled(told))
    _section(console, "Why", _listed("-", tuple(one.text for one in told.causes)))
    _section(console, "What helps", _listed("-", told.helps))
    _section(console, "A smaller plan, the cheapest first", _listed("1", told.reliefs))
    _section(console, "The log", _listed("-", _log(told)))
    _section(console, "Notes", _listed("-", told.notes))


def _section(console: Console, title: str, body: Table | None) -> None:
    if body is not None and body.row_count:
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 0, 2), expand=False))


def _listed(mark: str, lines: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, 1))
    for number, line in enumerate(lines, start=1):
        table.add_row(f"{number}." if mark == "1" else mark, Text(line))
    return table


def _filled(told: Explanation) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    total = told.message.total_bytes if told.message else None
    for one in told.filled:
        if total and one.bytes < _LEAST_SHARE * total and one.part != "free":
            continue
        share: RenderableType = f"{one.bytes / total:.0%}" if total else ""
        table.add_row(Text(one.part), size(one.bytes), share)
    return table


def _log(told: Explanation) -> tuple[str, ...]:
    """Which message decided, and what else is there."""
    if told.message is None:
        return ()
    lines = [f"{_place(told.message)} decides: {told.message.text}"]
    lines += [f"also {_place(one)}: {one.text}" for one in told.also[:_OTHERS_SHOWN]]
    rest = len(told.also) - _OTHERS_SHOWN
    if rest > 0:
        lines.append(f"and {counted(rest, 'more process', 'more processes')}: see --json")
    if told.further:
        lines.append(f"{counted(told.further, 'message')} after the first of a process left out")
    return tuple(lines)


def _place(message: Message) -> str:
    rank = f", rank {message.rank}" if message.rank else ""
    return f"line {message.line}{rank}"
