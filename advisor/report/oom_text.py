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


def print_explanation(found: Explanation, console: Console) -> None:
    """The answer first, then what filled the card, why, and what helps, in this order."""
    headline = Text(found.summary, style="bold" if found.memory else "bold magenta")
    if found.phase:
        headline.append(f", {found.phase}", style="default")
    console.print(headline)
    if found.command:
        console.print()
        # Never wrapped: a command that is cut in two cannot be pasted.
        line = Text("  ").append(found.command, style="bold cyan")
        console.print(line.append("   advises a plan that fits", style="dim"), soft_wrap=True)
    if found.filled:
        _section(console, "What filled the card", _filled(found))
    _section(console, "Why", _listed("-", tuple(one.text for one in found.causes)))
    _section(console, "What helps", _listed("-", found.helps))
    _section(console, "A smaller plan, the cheapest first", _listed("1", found.reliefs))
    _section(console, "The log", _listed("-", _log(found)))
    _section(console, "Notes", _listed("-", found.notes))


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


def _filled(found: Explanation) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    total = found.message.total_bytes if found.message else None
    for one in found.filled:
        if total and one.bytes < _LEAST_SHARE * total and one.part != "free":
            continue
        share: RenderableType = f"{one.bytes / total:.0%}" if total else ""
        table.add_row(Text(one.part), size(one.bytes), share)
    return table


def _log(found: Explanation) -> tuple[str, ...]:
    """Which message decided, and what else is there."""
    if found.message is None:
        return ()
    lines = [f"{_place(found.message)} decides: {found.message.text}"]
    lines += [f"also {_place(one)}: {one.text}" for one in found.also[:_OTHERS_SHOWN]]
    rest = len(found.also) - _OTHERS_SHOWN
    if rest > 0:
        lines.append(f"and {counted(rest, 'more process', 'more processes')}: see --json")
    if found.further:
        lines.append(f"{counted(found.further, 'message')} after the first of a process left out")
    return tuple(lines)


def _place(message: Message) -> str:
    rank = f", rank {message.rank}" if message.rank else ""
    return f"line {message.line}{rank}"
