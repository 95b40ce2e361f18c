"""Ranks what the table has tested against a budget, and sets the margins.

Bytes inside; each number carries its basis. The rules, in order: a candidate must fit; it must
train what the user's plan trains; among those the fastest wins, by samples per second on the card
where it was tested. The effective batch is the user's and is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pydantic import Field

from advisor.budget import (
    GIB,
    Basis,
    Budget,
    Bytes,
    Frozen,
    budget_of,
    judge,
    what_if_gpu,
)
from advisor.probe import Gpu, Machine
from profiles.plan import Finding, Lora, Plan, PlanError, Schedule
from profiles.tested import TestedRow, Verdict, model_needs_no_more, needs_no_more

TINY_BYTES = GIB
CARD_SIZES_GIB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)


class Reason(Frozen):
    """Why a setting has its value."""

    setting: str
    value: str
    because: str
    basis: Basis


class Speed(Frozen):
    """Samples per second on `gpu`, the card of the tested row; other cards differ."""

    samples_per_second: float
    basis: Basis
    gpu: str | None


class Candidate(Frozen):
    """One tested row, adapted to the user's settings and held against the budget."""

    row_id: str
    title: str
    plan: Plan | None = Field(description="None when the row and the user's settings contradict")
    needs: Bytes
    speed: Speed | None
    verdict: Verdict
    why_not: str = Field("", description="why it was not chosen; empty for the chosen one")


def tiny_cpu_plan() -> Plan:
    """The plan of the demo: lisa-tiny on the CPU."""
    return Plan(
        model="tiny",
        device="cpu",
        dtype="fp32",
        quantization="nf4",
        lora=Lora(rank=16, alpha=32, dropout=0, targets="all-linear"),
        train=("mask_decoder", "text_hidden_fcs", "token_rows"),
        effective_batch=8,
        micro_batch=8,
        accumulation=1,
        cached_encoders=("sam", "clip"),
        mask_loss_resolution=128,
        schedule=Schedule(learning_rate=1e-3, shape="cosine", warmup_steps=10, epochs=3),
        workers=0,
    )


def pick_gpu(machine: Machine) -> Gpu | None:
    """The visible GPU with the most free bytes; one whose memory is unknown comes last."""
    usable = [gpu for gpu in machine.gpus if gpu.lost is None]
    return max(usable, key=lambda gpu: gpu.free_bytes or 0, default=None)


def measured_rows(rows: Iterable[TestedRow], model: str) -> list[TestedRow]:
    """Rows with known bytes that speak for `model`: its own, or those of a larger sister."""
    profile = Plan(model=model).profile
    return [
        row
        for row in rows
        if row.source != "seed"
        and row.verdict in ("FITS", "TIGHT")
        and row.needed_bytes is not None
        and model_needs_no_more(profile, row.plan.profile)
    ]


def smallest_card_gib(rows: Iterable[TestedRow], model: str) -> tuple[int, TestedRow] | None:
    """The smallest usual card, in GiB, that trains `model`, and the row that says so."""
    best = min(measured_rows(rows, model), key=lambda row: row.needed_bytes or 0, default=None)
    if best is None or best.needed_bytes is None:
        return None
    for size in CARD_SIZES_GIB:
        budget = budget_of(what_if_gpu(size * GIB), Machine(), what_if=True)
        if budget is not None and judge(best.needed_bytes, budget, spills=False) == "FITS":
            return size, best
    return None


def choose(
    rows: Sequence[TestedRow],
    base: Plan,
    overrides: Sequence[str],
    budget: Budget,
    spills: bool,
    refusals: Callable[[Plan], list[Finding]],
) -> tuple[Candidate | None, tuple[Candidate, ...]]:
    """The best candidate (the smallest one if none fits; None if no row speaks for the settings)
    and all that were considered, the best first.

    `base` is the wanted plan with `overrides` applied; each row's plan gets them too. `refusals`
    says why a plan cannot run on the card at all.
    """
    judged = [
        _candidate(row, rows, base, overrides, budget, spills, refusals)
        for row in measured_rows(rows, base.model)
    ]
    open_ones = [candidate for candidate in judged if not candidate.why_not]
    fitting = [candidate for candidate in open_ones if candidate.verdict == "FITS"]
    best = max(fitting, key=_rank, default=None) or max(open_ones, key=_smallest, default=None)
    others = [_explained(candidate, best) for candidate in judged if candidate is not best]
    others.sort(key=_rank, reverse=True)
    return best, ((best, *others) if best else tuple(others))


def _rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Faster is better; where no speed is known, larger batches and fewer copies to the card."""
    speed = candidate.speed.samples_per_second if candidate.speed else 0.0
    micro_batch = candidate.plan.micro_batch if candidate.plan else 0
    host_layers = candidate.plan.host_layers if candidate.plan else 0
    return speed, micro_batch, -host_layers, -candidate.needs.bytes


def _smallest(candidate: Candidate) -> int:
    return -candidate.needs.bytes


def _explained(candidate: Candidate, best: Candidate | None) -> Candidate:
    if candidate.why_not or best is None:
        return candidate
    if candidate.verdict != "FITS":
        why = "inside the margin" if candidate.verdict == "TIGHT" else "needs more than is usable"
    elif _rank(candidate)[0] < _rank(best)[0]:
        why = "slower"
    else:
        why = "no faster"
    return candidate.model_copy(update={"why_not": why})


def _candidate(
    row: TestedRow,
    rows: Sequence[TestedRow],
    base: Plan,
    overrides: Sequence[str],
    budget: Budget,
    spills: bool,
    refusals: Callable[[Plan], list[Finding]],
) -> Candidate:
    assert row.needed_bytes is not None
    plan: Plan | None = None
    speed: Speed | None = None
    verdict: Verdict = "UNKNOWN"
    try:
        plan = _adapted(row, base, overrides)
    except PlanError as error:
        why = "contradicts your settings: " + "; ".join(f.what for f in error.findings)
    else:
        why = "; ".join(finding.what for finding in refusals(plan)) or _model_changes(plan, base)
        if not row.covers(plan):
            why = "your settings may need more than was tested"
        else:
            verdict = judge(row.needed_bytes, budget, spills)
            speed = speed_of(row, rows, plan.micro_batch)
            refuting = _refuting_row(plan, rows, budget)
            if refuting is not None and verdict in ("FITS", "TIGHT"):
                verdict = "SPILLS" if spills else "OOM"
                why = f"row {refuting.id} ran out of memory with no more than this"
    kind = "peak reserved" if row.peak_reserved_bytes else "peak allocated"
    needs = Bytes(bytes=row.needed_bytes, basis="tested", source=f"row {row.id}, {kind}")
    return Candidate(
        row_id=row.id,
        title=row.title,
        plan=plan,
        needs=needs,
        speed=speed,
        verdict=verdict,
        why_not=why,
    )


def _adapted(row: TestedRow, base: Plan, overrides: Sequence[str]) -> Plan:
    """The row's plan for the wanted model, dtype and effective batch. Raises PlanError."""
    settings = {**row.settings, "model": base.model, "dtype": base.dtype}
    settings |= {"allocator": base.allocator, "effective_batch": base.effective_batch}
    settings |= {"micro_batch": 1, "accumulation": base.effective_batch}
    return overridden(Plan.parse(settings), overrides, row.plan.micro_batch)


def overridden(plan: Plan, overrides: Sequence[str], largest_micro_batch: int) -> Plan:
    """`plan` with the user's settings, its effective batch kept. Raises PlanError.

    Unless the user sets it, the micro-batch is the largest divisor of the effective batch up to
    `largest_micro_batch`: fewer samples at once need less memory, so what was tested at that size
    stays an upper bound.
    """
    apart = {"micro_batch": 1, "accumulation": plan.effective_batch, "processes": 1}
    plan = plan.model_copy(update=apart).override(overrides)
    if {"micro_batch", "accumulation"} & set(assigned(overrides)):
        return plan
    share = plan.effective_batch // plan.processes
    micro_batch = max(n for n in range(1, largest_micro_batch + 1) if share % n == 0)
    return plan.override([f"micro_batch={micro_batch}"])


def assigned(overrides: Iterable[str]) -> dict[str, str]:
    """The settings that `key=value` texts assign, with their raw values."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def _model_changes(plan: Plan, base: Plan) -> str:
    """What `plan` leaves untrained although `base` trains it; empty if nothing."""
    missing = set(base.train) - set(plan.train)
    if "embeddings" in plan.train:
        missing -= {"token_rows", "head"}
    if missing:
        return f"does not train {', '.join(sorted(missing))}"
    return "trains no LoRA" if base.lora and not plan.lora else ""


def _refuting_row(plan: Plan, rows: Iterable[TestedRow], budget: Budget) -> TestedRow | None:
    """A row that ran out of at least this much memory although it needs no more than `plan`."""
    for row in rows:
        if row.source == "seed" or row.verdict != "OOM" or row.limit_bytes is None:
            continue
        if row.limit_bytes >= budget.usable.bytes and needs_no_more(row.plan, plan):
            return row
    return None


def same_except(plan: Plan, other: Plan, *settings: str) -> bool:
    """Whether two plans agree in everything but `settings`."""
    return plan.model_dump(exclude=set(settings)) == other.model_dump(exclude=set(settings))


BATCH_SETTINGS = ("micro_batch", "accumulation", "effective_batch")


def speed_of(row: TestedRow, rows: Iterable[TestedRow], micro_batch: int) -> Speed | None:
    """Samples per second of `row`'s settings at `micro_batch`, where it can be told.

    Between two tested micro-batches the step's seconds are taken as linear; below the smallest
    its seconds are an upper bound.
    """
    seconds = {
        other.plan.micro_batch: other.step_seconds
        for other in rows
        if other.step_seconds is not None
        and other.gpu == row.gpu
        and same_except(other.plan, row.plan, *BATCH_SETTINGS)
    }
    above = [n for n in seconds if n >= micro_batch]
    if not above:
        return None
    upper = min(above)
    lower = max((n for n in seconds if n <= micro_batch), default=upper)
    step = seconds[upper]
    if lower < upper:
        share = (micro_batch - lower) / (upper - lower)
        step = seconds[lower] + share * (seconds[upper] - seconds[lower])
    basis: Basis = "tested" if upper == micro_batch else "forecast"
    return Speed(samples_per_second=micro_batch / step, basis=basis, gpu=row.gpu)
