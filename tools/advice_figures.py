"""The tables of docs/advice.md: what the advice gives cards of usual sizes."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.advice import Advice
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.preflight import advise
from profiles.levers import phrases
from profiles.models import DEFAULT_MODELS
from profiles.preferences import PREFERENCES, Preference
from profiles.sizes import GIB

MODELS = (DEFAULT_MODELS[0], "7b")
ADAPTERS = (("qv", 8), ("qv", 16), ("qv", 32), ("qv", 64), ("all-linear", 8), ("all-linear", 64))
LEVERS = ("quantization", "micro_batch", "checkpointed_layers", "host_layers")


def orders() -> str:
    """What each order of preference chooses."""
    lines = [
        f"| card | model | {' | '.join(PREFERENCES)} |",
        "|---|---|" + "---|" * len(PREFERENCES),
    ]
    for model in MODELS:
        for size in (6, 8, 12, 16, 24):
            usual, *others = (_advice(size, model, prefer=order) for order in PREFERENCES)
            cells = [_cell(usual)]
            cells += ["as usual" if one.plan == usual.plan else _cell(one) for one in others]
            lines.append(f"| {size} GiB | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapters() -> str:
    """What larger adapters leave room for."""
    heads = [f"r={rank} on {'q,v' if kind == 'qv' else kind}" for kind, rank in ADAPTERS]
    lines = [f"| card | model | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for model in MODELS:
        for size in (8, 12, 16, 24):
            cells = [
                _cell(_advice(size, model, (f"lora.rank={rank}", f"lora.targets={kind}")))
                for kind, rank in ADAPTERS
            ]
            lines.append(f"| {size} GiB | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _advice(
    size_gib: int, model: str, settings: Iterable[str] = (), prefer: Preference = "usual"
) -> Advice:
    """From the shipped rows alone: whoever runs this may have more."""
    target = Target(vram_bytes=size_gib * GIB)
    return advise(Machine(), model, settings, target, prefer=prefer)


def _cell(advice: Advice) -> str:
    plan, needs, speed = advice.plan, advice.needs, advice.speed
    if plan is None or needs is None or speed is None or advice.exit_code:
        return advice.verdict
    said = phrases(plan, LEVERS).replace("micro-batch ", "b").replace(" layers checkpointed", "")
    return f"{said}: {needs.bytes / GIB:.1f} GiB, {speed.samples_per_second:.2g}/s"
