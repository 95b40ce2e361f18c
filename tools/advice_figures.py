"""The tables of docs/advice.md: what the advice gives cards of usual sizes."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.advice import Advice
from advisor.choice.candidate import Candidate
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from advisor.report.plan_words import plan_text
from profiles.models import DEFAULT_MODELS
from profiles.preferences import PREFERENCES
from profiles.sizes import GIB

MODELS = (DEFAULT_MODELS[0], "7b")
ADAPTERS = (("qv", 8), ("qv", 16), ("qv", 32), ("qv", 64), ("all-linear", 8), ("all-linear", 64))
SHORT = {"micro-batch ": "b", " layers checkpointed": "", "embeddings on the host": "e"}


def orders() -> str:
    """What each order of preference chooses."""
    lines = [
        f"| card | model | {' | '.join(PREFERENCES)} |",
        "|---|---|" + "---|" * len(PREFERENCES),
    ]
    for model in MODELS:
        for size in (6, 8, 12, 16, 24):
            usual = advised(size, model)
            others = (usual.alternatives.get(order) for order in PREFERENCES[1:])
            cells = [_cell(usual), *(_cell(one) if one else "as usual" for one in others)]
            lines.append(f"| {size} GiB | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapters() -> str:
    """What larger adapters leave room for."""
    heads = [f"r={rank} on {'q,v' if kind == 'qv' else kind}" for kind, rank in ADAPTERS]
    lines = [f"| card | model | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for model in MODELS:
        for size in (8, 12, 16, 24):
            cells = [
                _cell(advised(size, model, (f"lora.rank={rank}", f"lora.targets={kind}")))
                for kind, rank in ADAPTERS
            ]
            lines.append(f"| {size} GiB | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def advised(size_gib: int, model: str, settings: Iterable[str] = ()) -> Advice:
    """The advice for a card, from the shipped rows alone: whoever runs this may have more."""
    return advise(Machine(), model, settings, Target(vram_bytes=size_gib * GIB))


def _cell(shown: Advice | Candidate) -> str:
    plan, needs, speed = shown.plan, shown.needs, shown.speed
    if plan is None or needs is None or speed is None or shown.verdict not in ("FITS", "TIGHT"):
        return shown.verdict
    said = plan_text(plan)
    for words, letters in SHORT.items():
        said = said.replace(words, letters)
    return f"{said}: {needs.bytes / GIB:.1f} GiB, {speed.samples_per_second:.2g}/s"
