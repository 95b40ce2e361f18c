"""The card's memory as one line of text: what the plan fills, and where its limit is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from advisor.choice.search import basis_text
from advisor.memory.parts import CACHING
from profiles.sizes import GIB

if TYPE_CHECKING:
    from advisor.advice import Advice

WIDTH = 60  # characters for the whole card


class Part(NamedTuple):
    """A component with its character, in plain ASCII too, and its colour (Okabe and Ito's)."""

    name: str
    mark: str
    ascii: str
    style: str


PARTS = (
    Part("weights", "█", "W", "#0072b2"),
    Part("trained", "▓", "T", "#e69f00"),
    Part("activations", "▒", "A", "#009e73"),
    Part(CACHING, "░", "C", "#cc79a7"),
)
LIMIT, ASCII_LIMIT = "┃", "|"
FREE, ASCII_FREE = "·", "."


def bar(advice: Advice, console: Console) -> Text:
    """One line: the parts of the plan's pool, what is left below the limit, the limit, the rest."""
    assert advice.budget is not None and advice.needs is not None
    plain = not console.encoding.lower().startswith("utf")
    usable = advice.budget.usable.bytes
    whole = max(advice.budget.free.bytes, advice.needs.bytes, 1)
    scale = WIDTH / whole
    line, done, filled = Text(), 0, 0
    sizes = advice.parts or {"activations": advice.needs.bytes}
    for part in PARTS:
        filled += sizes.get(part.name, 0)
        length = round(scale * filled) - done
        line.append((part.ascii if plain else part.mark) * length, style=part.style)
        done += length
    free, limit = (ASCII_FREE, ASCII_LIMIT) if plain else (FREE, LIMIT)
    line.append(free * (WIDTH - done), style="dim")
    at = min(round(scale * usable), WIDTH - 1)
    return line[:at] + Text(limit, style="bold red") + line[at + 1 :]


def legend(advice: Advice) -> str:
    """The bar's parts in GiB, with their sum and what that is; with the limit where it is passed.

    A plan that fits has its limit in the line above.
    """
    assert advice.budget is not None and advice.needs is not None
    parts = [f"{name} {size / GIB:.2f}" for name, size in advice.parts.items()]
    whole = f"{advice.needs.bytes / GIB:.2f}"
    if CACHING in advice.parts:
        parts, whole = [], f"{whole} to build the feature cache, more than a step"
    elif advice.verdict != "FITS":
        whole += f" of {advice.budget.usable.bytes / GIB:.2f}"
    whole += f", {basis_text(advice.needs)}"
    return f"{' + '.join(parts)} = {whole}" if parts else whole
