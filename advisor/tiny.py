"""lisa-tiny: the plan where there is no card, or none that holds the model asked for."""

from __future__ import annotations

from dataclasses import replace

from advisor.advice import Advice, undecided
from advisor.choice.candidate import Reason
from advisor.choice.search import smallest_cards_text
from advisor.machine.budget import Bytes, judge
from advisor.machine.gpu import Gpu
from advisor.report.findings import machine_notes, neighbours, open_name
from advisor.report.reasons import allocator_reason, card_reasons, dtype_reason
from advisor.request import (
    Request,
    command_of,
    dtype_of,
    environment_of,
    overridden,
    refusals,
    whole_segments,
)
from profiles.findings import Finding, PlanError
from profiles.levers import needs_no_more
from profiles.models import DEFAULT_MODELS
from profiles.overrides import assigned
from profiles.plan import Plan
from profiles.settings import TARGETS_PER_PICTURE, Lora, Mixture, Schedule
from profiles.sizes import GIB, gib
from profiles.tested import Verdict

TINY_BYTES = GIB // 2  # 0.29 GiB by forecast


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
        cached_encoders=("mask", "vision"),
        mask_loss_resolution=128,
        schedule=Schedule(learning_rate=1e-3, shape="cosine", warmup_steps=10, epochs=3),
        workers=0,
    )


def on_cpu(request: Request) -> Advice:
    """lisa-tiny on the CPU; a large model there cannot be decided."""
    rows = request.table.rows
    if request.model is not None and not request.wants_packaged:
        model = request.model
        overridden(Plan.parse({"model": model}), request.overrides, 1)  # bad settings come first
        what = "no tested row trains it on a CPU" if request.wants_cpu else "no usable GPU"
        return undecided(request, model, what, f"lisa-advise --model {model} --vram 8GiB")
    tiny = tiny_cpu_plan()
    plan = overridden(tiny, request.overrides, tiny.micro_batch)
    if plan.device == "cuda":
        return undecided(request, "tiny", "no usable GPU", "leave out --set device=cuda")
    row = next((row for row in rows if row.verdict == "FITS" and row.covers(_alone(plan))), None)
    if row is None:
        what = "no tested row covers these settings on a CPU"
        fix = "leave out --set, or try the settings with lisa-train without --auto"
        return undecided(request, "tiny", what, fix).model_copy(update={"plan": plan})
    reasons = [
        Reason(setting="model", value="tiny", because=f"row {row.id}: {row.title}", basis="tested")
    ]
    if "dtype" not in assigned(request.overrides):
        because = "most CPUs compute bf16 no faster than fp32"
        reasons.append(Reason(setting="dtype", value=plan.dtype, because=because, basis="policy"))
    return Advice(
        verdict="FITS",
        summary=f"tiny on this machine's CPU ({request.machine.cpu_model or 'unknown model'})",
        model="tiny",
        plan=plan,
        command=command_of(request, "tiny"),
        reasons=tuple(reasons),
        findings=(*request.table.findings, _larger_models(request)),
        machine=request.machine,
    )


def _alone(plan: Plan) -> Plan:
    """lisa-tiny's plan on ReasonSeg alone with one question a row, for which TINY_BYTES is enough.

    A row of 512 supervised tokens and 3 masks takes 0.42 GiB by forecast. If there are several
    processes, each takes 2.4 MiB more.
    """
    shared = plan.questions_per_picture <= TARGETS_PER_PICTURE
    update = {"questions_per_picture": 1} if shared else {}
    return plan.model_copy(update={"mixture": Mixture(), "processes": 1, **update})


def _larger_models(request: Request) -> Finding:
    """Which models a card would train, for a machine that trains on its CPU."""
    what = smallest_cards_text((*DEFAULT_MODELS, "7b", "13b"))
    return Finding("with a GPU", what, fix="lisa-advise --vram 8GiB says how")


def tiny_instead(request: Request, gpu: Gpu, large: Advice) -> Advice:
    """lisa-tiny because the default model does not fit; `large` if the settings rule that out."""
    try:
        tiny = tiny_on_gpu(request, gpu)
    except PlanError:
        return large  # the user's settings were meant for the large model
    if tiny.verdict == "UNKNOWN":
        return large
    reason = Reason(setting="model", value="tiny", because=large.summary, basis="forecast")
    return tiny.model_copy(
        update={
            "reasons": (reason, *tiny.reasons),
            "considered": large.considered,
            "findings": large.findings,
        }
    )


def tiny_on_gpu(request: Request, gpu: Gpu) -> Advice:
    """The demo's plan on a card: its 5 M parameters stay below TINY_BYTES by policy."""
    settings = ["device=cuda", f"dtype={dtype_of(gpu)}"]
    whole = whole_segments(request, gpu)
    if whole:
        settings.append("allocator=")
    usual = tiny_cpu_plan().override(settings)
    plan = overridden(usual, request.overrides, usual.micro_batch)
    if findings := refusals(request, gpu, plan):
        raise PlanError(findings)
    budget = request.budget(gpu, plan)
    verdict: Verdict = "UNKNOWN"
    if budget is not None and needs_no_more(_alone(plan), usual):
        verdict = judge(TINY_BYTES, budget, request.spills)
    needs = Bytes(bytes=TINY_BYTES, basis="policy", source="5 M parameters")
    because = "its 5 M parameters and their activations are taken to be below " + gib(TINY_BYTES)
    reasons = [
        *card_reasons(replace(request, model="tiny"), gpu, "tiny"),
        Reason(setting="needs", value=gib(TINY_BYTES), because=because, basis="policy"),
        dtype_reason(plan, gpu),
        allocator_reason(plan, whole),
    ]
    summaries: dict[Verdict, str] = {
        "FITS": f"below {gib(TINY_BYTES)}",
        "TIGHT": f"up to {gib(TINY_BYTES)} reach into the margin",
        "UNKNOWN": "these settings, or this card's free memory, are not known well enough",
    }
    usable = gib(budget.usable.bytes) if budget is not None else "unknown"
    summary = summaries.get(verdict, f"takes up to {gib(TINY_BYTES)}, and {usable} are usable")
    given = assigned(request.overrides)
    runs = verdict in ("FITS", "TIGHT")
    return Advice(
        verdict=verdict,
        summary=f"tiny on {request.title(gpu)}: {summary}",
        model="tiny",
        plan=plan,
        command=command_of(request, "tiny") if runs else None,
        environment=environment_of(request, gpu, plan),
        gpu=gpu,
        what_if=request.what_if,
        budget=budget,
        needs=needs,
        reasons=tuple(reason for reason in reasons if reason.setting not in given),
        findings=(
            *request.table.findings,
            *open_name(request.target),
            *machine_notes(request, gpu, plan),
            *neighbours(request, gpu),
        ),
        machine=request.machine,
    )
