"""After an out-of-memory error: its cause, and the plan that the run continues with.

Only levers change: the samples of every update, the learning rates and what is trained stay. The
base weights keep their storage as long as a plan with it fits.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.choice.candidate import Candidate
from advisor.choice.rank import RUNG_SHARE
from advisor.choice.search import search, smallest_cards_text
from advisor.machine.budget import Budget, margin_of
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.probe import probe
from advisor.machine.target import gpu_for
from advisor.memory.card import ASSUMED, Card
from advisor.memory.forecast import Forecast, forecast
from advisor.memory.live import live_forecast
from advisor.memory.worst_sample import Worst
from advisor.rehearsal import BadQuestion, RehearsalFailed
from advisor.report.plan_words import plan_text
from advisor.request import Request
from profiles.batches import micro_batches
from profiles.exchange import nccl_bytes
from profiles.levers import MAY_CHANGE_ON_FALLBACK
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.shortage import Shortage
from profiles.sizes import GIB, gib
from profiles.tested import DataShape, TestedRow, keep

OTHERS_BYTES = 2**29  # less growth beside the pool may be this process's own libraries
ASK_AGAIN_SECONDS = 10


class NothingSmaller(RuntimeError):
    """No smaller plan is left; says what was tried and what would fit."""


@dataclass(frozen=True)
class Fallback:
    """The plan that the run continues with, and why; its figures for the record."""

    plan: Plan
    because: str
    short: Shortage
    forecast: Forecast | None = None  # of the plan that ran out

    @property
    def text(self) -> str:
        """The plan in a few words."""
        return plan_text(self.plan)

    def record(self) -> dict[str, Any]:
        """For the run folder: the plan, and by component what was forecast and what was taken."""
        expected = self.forecast
        forecast = {
            "components": expected.live_at_peak if expected else {},
            **({f"{tier.name}_bytes": tier.bytes for tier in expected.tiers} if expected else {}),
        }
        taken = {
            "components": self.short.components,
            "tensors_bytes": self.short.allocated_bytes,
            "pool_bytes": self.short.reserved_bytes,
        }
        return {"because": self.because, "plan": self.plan.content_hash, "levers": self.text,
                "forecast": forecast, "taken": taken}  # fmt: skip


def fallback(
    tried: Sequence[Shortage],
    pinned: Sequence[str],
    data: Path,
    wait_minutes: float,
    tell: Callable[[str], None],
    look: Callable[[], Machine] = probe,
    prefer: Preference = "usual",
) -> Fallback:
    """The plan to continue with after the last of `tried`; the user's `pinned` settings stay.

    It is the preferred one of the smaller plans, in the order `prefer` that chose the run's plan.
    If other processes took the memory, waits up to `wait_minutes` for it. The error becomes a row
    of the user's table. Raises NothingSmaller.
    """
    short, machine = tried[-1], look()
    gpu = gpu_for(machine, None, short.plan.local_processes)
    if short.plan.device == "cpu" or gpu is None:
        return _by_hand(tried, pinned, "no card to query")
    expected = _forecast(short, gpu, data)
    pool = expected.tier("pool").bytes if expected and expected.tiers else None
    _keep_row(short, gpu, expected, pool)
    text = expected.text_tokens if expected else None
    group = f"processes={short.plan.processes}", f"nodes={short.plan.nodes}"
    request = Request(machine, short.plan.model, group, Evidence.here(), None,
                      None if text else data, text, live_forecast(machine, None, data, tell),
                      prefer=prefer)  # fmt: skip
    budget = request.budget(gpu, short.plan)
    if budget is None:
        return _by_hand(tried, pinned, "the card does not report its free memory")
    by_others = taken_by_others(short, pool)
    if by_others:
        tell(f"other processes took {gib(short.taken_by_others)} of {gpu.name}{_who(gpu)}")
        budget = _waited(
            request, short.plan, pool or short.reserved_bytes or 0, budget, wait_minutes, tell, look
        )
        if budget.usable.bytes >= (pool or short.reserved_bytes or 0) and _moves(tried):
            return Fallback(short.plan, "the memory is free again", short, expected)
        limit, share = budget.usable.bytes, 1.0
    else:
        had = short.limit_bytes or budget.cap_bytes
        limit, share = had - margin_of(gpu, had, request.evidence.own_rows).bytes, RUNG_SHARE
    because = "other processes have the rest" if by_others else _compared(short, pool)
    found = smaller(request, gpu, budget, short.plan, set(pinned), limit, share)
    if isinstance(found, Candidate):
        because += f"; this one takes {gib(found.needs.bytes)} of {gib(limit)}"
        return Fallback(found.plan, because, short, expected)
    if found:  # no forecast covers this plan, such as lisa-tiny's
        return _by_hand(tried, pinned, because)
    raise _ended(tried)


def taken_by_others(short: Shortage, pool: int | None) -> bool:
    """Whether the plan would have fitted if nothing beside its pool had grown since the start.

    NCCL's buffers appear after the start, but belong to this run, not to other processes.
    """
    grown = short.taken_by_others - nccl_bytes(short.plan) >= OTHERS_BYTES
    return grown and (pool is None or pool <= (short.limit_before_bytes or 0))


def smaller(
    request: Request,
    gpu: Gpu,
    budget: Budget,
    plan: Plan,
    pinned: set[str],
    limit: int,
    share: float,
) -> Candidate | str:
    """The best plan below `limit` bytes and `share` of what `plan` takes; or why there is none."""
    setting = replace(request.setting(gpu, budget), best_alone=True)
    itself = search(plan, set(Plan.model_fields), setting)
    if isinstance(itself, str):
        return itself
    ceiling = min(limit, round(share * itself.choice.best.needs.bytes))
    usable = budget.usable.model_copy(update={"bytes": max(0, ceiling)})
    setting = replace(setting, budget=budget.model_copy(update={"usable": usable}))
    others = set(Plan.model_fields) - MAY_CHANGE_ON_FALLBACK
    for held in (others | pinned | {"quantization"}, others | pinned):
        found = search(plan, held, setting)
        if not isinstance(found, str) and found.choice.best.verdict == "FITS":
            return found.choice.best
    return ""


def _waited(
    request: Request,
    plan: Plan,
    pool: int,
    budget: Budget,
    minutes: float,
    tell: Callable[[str], None],
    look: Callable[[], Machine],
) -> Budget:
    """The budget as soon as `pool` bytes are usable, or when the waiting time is over."""
    until = time.monotonic() + 60 * minutes
    while budget.usable.bytes < pool and time.monotonic() < until:
        left = (until - time.monotonic()) / 60
        tell(f"waiting for {gib(pool)}, {gib(budget.usable.bytes)} usable, {left:.0f} min left")
        time.sleep(min(ASK_AGAIN_SECONDS, max(0.0, until - time.monotonic())))
        machine = look()
        gpu = gpu_for(machine, None, plan.local_processes)
        now = replace(request, machine=machine).budget(gpu, plan) if gpu else None
        budget = now or budget
    return budget


def _by_hand(tried: Sequence[Shortage], pinned: Sequence[str], because: str) -> Fallback:
    """Plans where there is no forecast: all layers recomputed, then fewer samples at once."""
    plan = tried[-1].plan
    layers, sizes = plan.profile.decoder.layers, micro_batches(plan, plan.micro_batch - 1)
    if plan.checkpointed_layers < layers and "checkpointed_layers" not in pinned:
        return Fallback(plan.override([f"checkpointed_layers={layers}"]), because, tried[-1])
    if sizes and not {"micro_batch", "accumulation"} & set(pinned):
        return Fallback(plan.override([f"micro_batch={sizes[-1]}"]), because, tried[-1])
    raise _ended(tried)


def _moves(tried: Sequence[Shortage]) -> bool:
    """Whether the run has made progress since the error before the last."""
    return len(tried) < 3 or tried[-1].step > tried[-3].step


def _forecast(short: Shortage, gpu: Gpu, data: Path) -> Forecast | None:
    """The forecast of the plan that ran out of memory; None if it cannot be made."""
    try:
        card = Card(compute_capability=gpu.compute_capability or ASSUMED)
        return forecast(short.plan, Worst(data=data), card)
    except (RehearsalFailed, BadQuestion):
        return None


def _keep_row(short: Shortage, gpu: Gpu, expected: Forecast | None, pool: int | None) -> None:
    plan = short.plan
    text = expected.text_tokens if expected else plan.tokens.max_text_tokens
    most = plan.profile.most_image_tokens
    image = most if expected is None or expected.image_tokens is None else expected.image_tokens
    row = TestedRow(
        id=f"run-{plan.content_hash}-{datetime.datetime.now():%Y%m%d%H%M%S}",
        title=f"{plan.model} {plan.content_hash}, {short.phase}",
        source="user",
        status="measured",
        model=plan.model,
        settings=plan.model_dump(mode="json", exclude={"schema_version", "model"}),
        gpu=short.gpu,
        gpu_memory_gib=None if gpu.total_bytes is None else gpu.total_bytes / GIB,
        cap_bytes=short.limit_bytes,
        forecast_bytes=pool,
        verdict="OOM",
        versions=short.versions,
        data_shape=DataShape(image_tokens=image, text_tokens=text),
        date=datetime.date.today(),
        note=short.error,
    )
    keep(row)


def _compared(short: Shortage, pool: int | None) -> str:
    had = f"the pool had {gib(short.limit_bytes)}" if short.limit_bytes else "the pool was full"
    return f"{had}, {gib(pool)} were forecast" if pool is not None else had


def _who(gpu: Gpu) -> str:
    if not gpu.other_processes:
        return ""
    held = f", with {gib(gpu.other_process_bytes)}" if gpu.other_process_bytes else ""
    return f" ({gpu.other_processes} on it now{held})"


def _ended(tried: Sequence[Shortage]) -> NothingSmaller:
    last = tried[-1].plan
    lines = [
        f"{plan_text(s.plan)}: {s.phase} after step {s.step}"
        + (f", {gib(s.limit_bytes)} available" if s.limit_bytes else "")
        for s in tried
    ]
    listed = "\n    ".join(lines)
    return NothingSmaller(
        f"out of memory, and no smaller plan is left; tried:\n    {listed}\n"
        f"    hint: {smallest_cards_text([last.model], nccl_bytes(last))}; with more memory free, "
        "lisa-train --resume tries the last plan again"
    )
