"""Why each setting of a chosen plan has its value: a Reason per automatic choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from advisor.budget import Basis, Budget, gib
from advisor.choose import Candidate, Reason, assigned, same_except, smallest_card_gib
from advisor.probe import Gpu
from profiles.plan import Plan
from profiles.tested import TestedRow

LEVERS = (
    "checkpointed_layers", "cached_encoders", "logits", "compile", "host_embeddings", "host_layers",
    "optimizer_state", "quantization",
)  # fmt: skip


def plan_reasons(
    candidate: Candidate,
    gpu: Gpu,
    budget: Budget,
    rows: Sequence[TestedRow],
    overrides: Iterable[str],
) -> list[Reason]:
    """Reasons for the plan of `candidate`; a setting that the user gave has none."""
    plan = candidate.plan
    assert plan is not None
    row = next(row for row in rows if row.id == candidate.row_id)
    reasons = [
        *_batch_reasons(plan, row, candidate, budget),
        dtype_reason(plan, gpu),
        *_seed_reasons(plan, rows),
        *(reason for lever in LEVERS if (reason := _lever_reason(plan, row, rows, lever))),
        allocator_reason(plan),
        *_token_reasons(plan, row),
    ]
    given = set(assigned(overrides))
    return [reason for reason in reasons if reason.setting not in given]


def _batch_reasons(
    plan: Plan, row: TestedRow, candidate: Candidate, budget: Budget
) -> Iterator[Reason]:
    because = f"row {row.id} took {gib(candidate.needs.bytes)} with micro-batch "
    because += f"{row.plan.micro_batch}; {gib(budget.usable.bytes)} are usable"
    if plan.micro_batch < row.plan.micro_batch:
        because += f"; {row.plan.micro_batch} does not divide the effective batch"
        because += f" of {plan.effective_batch}, and fewer samples need less"
    yield Reason(
        setting="micro_batch", value=str(plan.micro_batch), because=because, basis="tested"
    )
    because = f"kept: micro-batch {plan.micro_batch} x {plan.accumulation} forward passes"
    value = str(plan.effective_batch)
    yield Reason(setting="effective_batch", value=value, because=because, basis="exact")


def dtype_reason(plan: Plan, gpu: Gpu) -> Reason:
    """Why the plan computes in its dtype on that card."""
    basis: Basis = "exact"
    if gpu.compute_capability is None:
        because, basis = "compute capability unknown: 8.0 or later is assumed", "policy"
    else:
        version = "{}.{}".format(*gpu.compute_capability)
        able = "computes in bf16" if gpu.bf16 else "has no bf16 arithmetic (from 8.0)"
        because = f"{gpu.name} {able}: compute capability {version}"
    return Reason(setting="dtype", value=plan.dtype, because=because, basis=basis)


def allocator_reason(plan: Plan) -> Reason:
    """Why the CUDA allocator is set as it is."""
    because = "keeps the pool close to what the tensors take"
    if not plan.allocator:
        because = "expandable segments are not supported on Windows"
    return Reason(
        setting="allocator", value=plan.allocator or "default", because=because, basis="policy"
    )


def _token_reasons(plan: Plan, row: TestedRow) -> Iterator[Reason]:
    shape = row.data_shape
    if shape is not None and plan.tokens.max_text_tokens > shape.text_tokens:
        because = f"row {row.id} had {shape.text_tokens} text tokens a sample; samples that come "
        because += "near the limit need more: lisa-advise forecast PLAN tells"
        limit = str(plan.tokens.max_text_tokens)
        yield Reason(setting="tokens.max_text_tokens", value=limit, because=because, basis="tested")


def lora_text(plan: Plan) -> str:
    """The adapters in a few words."""
    if plan.lora is None:
        return "none"
    return f"r={plan.lora.rank} on {'q,v' if plan.lora.targets == 'qv' else plan.lora.targets}"


def _seed_reasons(plan: Plan, rows: Sequence[TestedRow]) -> Iterator[Reason]:
    """What the seed claims about this quantization with (or without) LoRA, and what refutes it."""
    refuted = [
        row
        for row in rows
        if row.source == "seed"
        and row.status != "recommended"
        and row.contradicted_by
        and row.model == plan.model
        and row.plan.quantization == plan.quantization
        and (row.plan.lora is None) == (plan.lora is None)
    ]
    if not refuted:
        return
    said = f'"{refuted[0].title}"'
    if plan.quantization == "nf4" and plan.lora is not None:
        said = "never LoRA with 4-bit on 8 GB"
    names = ", ".join(row.id for row in refuted)
    against = dict.fromkeys(name for row in refuted for name in row.contradicted_by)
    facts = "; ".join(f"row {row.id}: {_peak_text(row)}" for row in rows if row.id in against)
    because = f"the seed says {said} ({names}); contradicted by {facts}"
    yield Reason(setting="lora", value=lora_text(plan), because=because, basis="tested")


def _peak_text(row: TestedRow) -> str:
    if row.peak_allocated_bytes is not None:
        return gib(row.peak_allocated_bytes)
    limit = f" at {gib(row.limit_bytes)}" if row.limit_bytes else ""
    return "out of memory" + limit if row.verdict == "OOM" else row.verdict


def _lever_reason(
    plan: Plan, row: TestedRow, rows: Sequence[TestedRow], lever: str
) -> Reason | None:
    """What `lever` gains and costs, from two rows that differ in nothing else; None without."""
    value = getattr(plan, lever)
    if not value:
        return None  # not pulled
    pairs = [
        (with_it, without)
        for with_it in rows
        for without in rows
        if with_it.gpu == without.gpu == row.gpu
        and with_it.model == without.model == row.model
        and with_it.peak_allocated_bytes
        and without.peak_allocated_bytes
        and _pulled(lever, getattr(with_it.plan, lever), getattr(without.plan, lever), value)
        and same_except(with_it.plan, without.plan, lever)
    ]
    if not pairs:
        return None
    with_it, without = min(pairs, key=lambda pair: row not in pair)
    because = f"{_cost_text(with_it)} (row {with_it.id}); with "
    because += f"{_value_text(lever, getattr(without.plan, lever))} {_cost_text(without)}"
    because += f" (row {without.id})"
    text = _value_text(lever, value)
    return Reason(setting=lever, value=text, because=because, basis="tested")


def _pulled(lever: str, with_it: Any, without: Any, value: Any) -> bool:
    if lever == "cached_encoders":
        return set(without) < set(with_it) <= set(value)
    return bool(with_it == value and without != value)


def _value_text(lever: str, value: Any) -> str:
    if lever in ("checkpointed_layers", "host_layers"):
        return f"{value} layers"
    if isinstance(value, bool):
        return "on" if value else "off"
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)


def _cost_text(row: TestedRow) -> str:
    assert row.peak_allocated_bytes is not None
    seconds = f", {row.step_seconds:.2f} s a step" if row.step_seconds else ""
    return gib(row.peak_allocated_bytes) + seconds


def smallest_cards_text(rows: Sequence[TestedRow], models: Iterable[str]) -> str:
    """From which card size on each of `models` trains, as far as the table knows."""
    known = []
    for model in models:
        if found := smallest_card_gib(rows, model):
            size, row = found
            needs = gib(row.needed_bytes or 0)
            known.append(f"{model} trains from a {size} GiB card on (row {row.id}: {needs})")
    return "; ".join(known) or "no tested row tells what would"
