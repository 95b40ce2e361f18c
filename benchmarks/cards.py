"""What every card of the catalogue gets, and how long it trains: docs/cards.md.

    python benchmarks/cards.py        some seconds; no GPU

Each line is `lisa-advise --gpu CARD --model MODEL`: a machine of 16 GiB that has that card, and
samples as long as a plan allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tables import put

from advisor.advice import Advice
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.machine.torch_builds import wants_older
from advisor.preflight import advise
from advisor.report.plan_words import storage_text
from profiles.gpus import GpuProfile, find_gpu, gpus
from profiles.models import DEFAULT_MODELS
from profiles.tested import shipped_table
from profiles.text import time_text

DOCS = Path(__file__).resolve().parents[1] / "docs" / "cards.md"
BEGIN, END = "<!-- benchmarks/cards.py -->", "<!-- /benchmarks/cards.py -->"
MEASURED = "<!-- benchmarks/cards.py measured -->"
LEAST_GB = 4
MODELS = (DEFAULT_MODELS[0], "7b", "13b")


def cards() -> list[GpuProfile]:
    """The catalogue's cards of 4 GB and more, by memory, without the rare ones."""
    known = [card for card in gpus().values() if card.memory_gb >= LEAST_GB and not card.rare]
    return sorted(known, key=lambda card: (card.memory_gb, card.key))


def cell(advice: Advice) -> str:
    """A plan in a cell of the table."""
    plan, needs, duration = advice.plan, advice.needs, advice.duration
    if plan is None or needs is None or duration is None or advice.exit_code:
        return f"{advice.verdict}"
    parts = [storage_text(plan).removesuffix(" base"), f"b{plan.micro_batch}"]
    kept = plan.profile.decoder.layers - plan.checkpointed_layers
    parts += [f"{kept} kept"] if kept else []
    parts += [f"{plan.host_layers} on host"] if plan.host_layers else []
    parts += ["compiled"] if plan.compile else []
    parts += [] if advice.verdict == "FITS" else [f"{advice.verdict}"]
    size = needs.bytes / 2**30
    return f"**{time_text(duration.seconds)}**, {size:.1f} GiB: {', '.join(parts)}"


def titled(card: GpuProfile) -> str:
    """A card's name; with a link where plain pip's torch does not serve it."""
    older = " [with an older torch](install.md#older-cards)"
    return card.title + (older if wants_older(card.compute_capability) else "")


def line(card: GpuProfile) -> str:
    """A card's line, from the shipped rows only: whoever runs this may have more rows."""
    found = [advise(Machine(), model, (), Target(card=card)) for model in MODELS]
    budget = found[0].budget
    assert budget is not None
    usable = budget.usable.bytes / 2**30
    return f"| {titled(card)} | {usable:.1f} | {' | '.join(map(cell, found))} |"


def tables(shown: Sequence[GpuProfile]) -> list[str]:
    """The cards' lines, those of each size under a heading of their own, which search finds."""
    head = [f"| card | usable GiB | {' | '.join(MODELS)} |", "|---|---|---|---|---|"]
    lines = []
    for size, alike in groupby(shown, lambda card: card.memory_gb):
        lines += [f"## Cards of {size:g} GB", "", *head, *map(line, alike), ""]
    return lines[:-1]


def measured_lines() -> list[str]:
    """Which cards of the catalogue have a measured row among the shipped ones, and which none."""
    named = {row.gpu or "" for row in shipped_table().rows if row.source == "measured"}
    measured = {find_gpu(name).key for name in named if name.startswith("NVIDIA")}  # as NVML does
    have = "; ".join(card.title for card in gpus().values() if card.key in measured)
    lines = [f"Measured: {have}. Not yet:", "", "| memory | cards |", "|---|---|"]
    listed = (card for card in gpus().values() if not card.rare)
    others = sorted((card for card in listed if card.key not in measured),
                    key=lambda card: card.memory_gb)  # fmt: skip
    for size, cards in groupby(others, lambda card: card.memory_gb):
        names = ", ".join(card.title.rpartition(" (")[0] for card in cards)
        lines.append(f"| {size:g} GB | {names} |")
    return lines


def main() -> None:
    """Write the table and the list."""
    lines = tables(cards())
    put(DOCS, MEASURED, "<!-- /benchmarks/cards.py measured -->", measured_lines())
    put(DOCS, BEGIN, END, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
