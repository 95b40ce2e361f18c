"""Ranks what the table has tested against a budget, and sets the margins.

Bytes inside; each number carries its basis. The rules, in order: a candidate must fit; it must
train what the user's plan trains; among those the fastest wins, by samples per second on the card
where it was tested. The effective batch is the user's and is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from advisor.probe import Gpu, Machine
from profiles.plan import Finding, Lora, Plan, PlanError, Schedule
from profiles.tested import TestedRow, Verdict, model_needs_no_more, needs_no_more

Basis = Literal["exact", "tested", "forecast", "measured", "policy"]

GIB = 2**30
CONTEXT_BYTES = GIB // 2  # 0.14-0.7 GiB were seen on Linux cards
MARGIN_BYTES = round(0.3 * GIB)
MARGIN_SHARE = 0.03
WHAT_IF_KEPT_BYTES = round(0.2 * GIB)  # "8 GB" cards show 7.6-8.0 GiB
HOST_PROCESS_BYTES = 3 * GIB  # Python, torch and CUDA's host side, where host and GPU share memory
TINY_BYTES = GIB
CARD_SIZES_GIB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)


class Frozen(BaseModel):
    """Base of the advisor's records: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(Frozen):
    """Why a setting has its value."""

    setting: str
    value: str
    because: str
    basis: Basis


class Bytes(Frozen):
    """A number of bytes and where it comes from."""

    bytes: int
    basis: Basis
    source: str


class Budget(Frozen):
    """What the tensors of a run may take: usable = free - context - margin."""

    free: Bytes
    context: Bytes
    margin: Bytes
    usable: Bytes


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


def gib(number: int) -> str:
    """`number` bytes as text, in GiB."""
    return f"{number / GIB:.2f} GiB"


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


def what_if_gpu(vram_bytes: int) -> Gpu:
    """A card that is not here, of which only the size is known."""
    return Gpu(
        index=0,
        name=f"{vram_bytes / GIB:.4g} GiB card",
        total_bytes=vram_bytes,
        free_bytes=max(0, vram_bytes - WHAT_IF_KEPT_BYTES),
    )


def pick_gpu(machine: Machine) -> Gpu | None:
    """The visible GPU with the most free bytes; one whose memory is unknown comes last."""
    usable = [gpu for gpu in machine.gpus if gpu.lost is None]
    return max(usable, key=lambda gpu: gpu.free_bytes or 0, default=None)


def budget_of(gpu: Gpu, machine: Machine, what_if: bool = False) -> Budget | None:
    """The budget on `gpu`, or None where its free memory is unknown."""
    free = gpu.free_bytes
    basis: Basis = "policy" if what_if else "exact"
    source = f"size less {gib(WHAT_IF_KEPT_BYTES)} kept" if what_if else "driver (NVML)"
    if free is None and gpu.unified_memory and machine.host_available_bytes is not None:
        free = max(0, machine.host_available_bytes - HOST_PROCESS_BYTES)
        basis = "policy"
        source = f"shared host memory less {gib(HOST_PROCESS_BYTES)} for the process"
    if free is None:
        return None
    margin = max(MARGIN_BYTES, round(MARGIN_SHARE * free))
    usable = max(0, free - CONTEXT_BYTES - margin)
    return Budget(
        free=Bytes(bytes=free, basis=basis, source=source),
        context=Bytes(bytes=CONTEXT_BYTES, basis="policy", source="CUDA context and libraries"),
        margin=Bytes(bytes=margin, basis="policy", source="the larger of 0.30 GiB and 3 %"),
        usable=Bytes(bytes=usable, basis="policy", source="free - context - margin"),
    )


def judge(needed: int, budget: Budget, spills: bool) -> Verdict:
    """How `needed` bytes of tensors go into `budget`; `spills`: the driver swaps to the host."""
    if needed <= budget.usable.bytes:
        return "FITS"
    if needed <= budget.free.bytes - budget.context.bytes:
        return "TIGHT"
    return "SPILLS" if spills else "OOM"


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
