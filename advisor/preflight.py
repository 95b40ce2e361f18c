"""The story: probe, look up the tested configurations, choose, and say why.

`advise` takes a Machine and returns an Advice; it prints nothing, exits nowhere and imports no
torch. `lisa-advise` renders the Advice and `lisa-train --auto` runs its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from advisor.choice.rank import (
    TINY_BYTES,
    Candidate,
    Reason,
    Speed,
    assigned,
    overridden,
    tiny_cpu_plan,
)
from advisor.choice.search import (
    Live,
    largest_micro_batch,
    search,
    smallest_card_gib,
    smallest_cards_text,
)
from advisor.machine.budget import Budget, Bytes, Frozen, budget_of, gib, judge
from advisor.machine.cuda_context import OTHERS, Context, context_of, measure_context
from advisor.machine.probe import Gpu, Machine
from advisor.memory.forecast import Forecast, Worst, counted_by, forecast
from advisor.report.findings import card_findings, machine_notes, nearest_plan, neighbours
from advisor.report.reasons import allocator_reason, dtype_reason, plan_reasons
from advisor.request import (
    Question,
    Target,
    base_plan,
    command_of,
    dtype_of,
    environment_of,
    gpu_for,
    refusals,
    too_old,
    wanted_model,
    whole_segments,
)
from profiles.plan import Finding, Mixture, Plan, PlanError
from profiles.tested import Table, Verdict, needs_no_more, read_table

DEFAULT_MODEL = "7b"
EXIT_CODES: dict[Verdict, int] = {"FITS": 0, "TIGHT": 0, "OOM": 1, "SPILLS": 1, "UNKNOWN": 3}


class Advice(Frozen):
    """What to train, how, on what, and why."""

    schema_version: Literal[2] = 2
    verdict: Verdict
    summary: str = Field(description="the answer in one line")
    model: str
    plan: Plan | None = Field(None, description="None when nothing can be said")
    command: str | None = Field(None, description="trains under the plan; None if it cannot run")
    environment: dict[str, str] = Field(
        default_factory=dict, description="to be set before torch is imported"
    )
    gpu: Gpu | None = Field(None, description="the chosen card, real or what-if")
    what_if: bool = Field(False, description="the card was named and is not here")
    budget: Budget | None = None
    needs: Bytes | None = Field(None, description="the run's pool at most; None = unknown")
    host_bytes: int | None = Field(None, description="the run's host memory at most")
    text_tokens: int | None = Field(None, description="of the longest sample reckoned with")
    counted_by: str = Field("", description="which tokenizer counted a data set's text, if any")
    speed: Speed | None = None
    largest_micro_batch: int | None = Field(None, description="that fits with all else as planned")
    reasons: tuple[Reason, ...] = ()
    considered: tuple[Candidate, ...] = Field((), description="the chosen or nearest one first")
    ladder: tuple[Candidate, ...] = Field((), description="plans to fall back on, in order")
    better: Candidate | None = Field(None, description="the next better plan, too large here")
    better_card_gib: int | None = Field(None, description="the smallest usual card for it")
    forecast: Forecast | None = Field(None, description="of this very plan, where one was made")
    findings: tuple[Finding, ...] = Field((), description="what the user should know or mend")
    machine: Machine

    @property
    def exit_code(self) -> int:
        """0 fits, 1 does not fit, 3 cannot decide."""
        return EXIT_CODES[self.verdict]


@dataclass(frozen=True)
class Card:
    """The card that a forecast is judged by; no cap where there is none."""

    title: str
    cap_bytes: int | None = None
    margin_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    context: Context = OTHERS
    host_bytes: int | None = None


def card_for(machine: Machine, target: Target | None = None, measure: bool = False) -> Card:
    """This machine's best card, or `target`, with what a run's pool may take there.

    `measure` has this machine's context measured where it was not. Raises RehearsalFailed.
    """
    gpu = gpu_for(machine, target)
    if measure and gpu is not None and target is None:
        measure_context(gpu, machine)
    budget = budget_of(gpu, machine, target is not None) if gpu is not None else None
    if gpu is None or budget is None:
        return Card("no card")
    return Card(
        title=gpu.name,
        cap_bytes=budget.cap_bytes,
        margin_bytes=budget.margin.bytes,
        compute_capability=gpu.compute_capability,
        context=context_of(gpu, machine),
        host_bytes=budget.host.bytes if budget.host is not None else None,
    )


def live_forecast(
    machine: Machine, target: Target | None, data: Path | None, tell: Callable[[str], None]
) -> Live:
    """A `live` for `advise`: forecasts a plan for that card, and says so first.

    What the worst sample of `data` holds beside its text is remembered from the first answer.
    """
    seen = Worst()

    def live(plan: Plan, text_tokens: int | None) -> Forecast:
        tell(f"forecasting {plan.model} at micro-batch {plan.micro_batch}, some seconds ...")
        nonlocal seen
        first = text_tokens is None
        worst = Worst(data=data) if first else replace(seen, text_tokens=text_tokens)
        card = card_for(machine, target)
        found = forecast(plan, worst, card.compute_capability or (8, 6), context=card.context)
        if first:
            seen = Worst(masks=found.masks, answer_tokens=found.answer_tokens)
        # A later question names the length that was counted for the first.
        return found.model_copy(update={"counted_by": counted_by(plan, data)})

    return live


def advise(
    machine: Machine,
    model: str | None = None,
    overrides: Iterable[str] = (),
    target: Target | None = None,
    *,
    data: Path | None = None,
    text_tokens: int | None = None,
    live: Live | None = None,
    table: Table | None = None,
) -> Advice:
    """The advice for `machine`, or for `target` in the place of its card.

    `overrides` are `key=value` settings that hold whatever is chosen; samples have `text_tokens`
    at most, or what the longest of `data` has, or else the plan's limit. `live` forecasts a plan at
    a text length (None: the longest of `data`) where the shipped grid does not reach; `table`
    stands in for the shipped and the user's rows. Raises PlanError for an unknown model and for
    settings that cannot run, and whatever `live` raises.
    """
    overrides = tuple(overrides)
    question = Question(
        machine=machine,
        model=wanted_model(model, assigned(overrides).get("model")),
        overrides=overrides,
        table=read_table() if table is None else table,
        target=target,
        data=data,
        text_tokens=text_tokens,
        live=live,
    )
    _must_be_folder(assigned(overrides).get("weights", "default"))
    gpu = gpu_for(machine, target)
    if target is not None and question.wants_cpu:
        fix = "leave out one of the two"
        raise PlanError([Finding("device", "cpu contradicts a named card", "cpu", fix)])
    if gpu is None or question.wants_cpu:
        return _on_cpu(question)
    if old := too_old(gpu):
        model = question.model or DEFAULT_MODEL
        return _undecided(question, model, f"{gpu.name} {old.what}", old.fix)
    if question.model == "tiny":
        return _tiny_on_gpu(question, gpu)
    advice = _on_gpu(question, gpu, question.model or DEFAULT_MODEL)
    if question.model is None and advice.exit_code == 1:
        return _tiny_instead(question, gpu, advice)
    return advice


def _must_be_folder(weights: str) -> None:
    """Raise PlanError where the weights that are named are not there."""
    if weights not in ("default", "random") and not Path(weights).expanduser().is_dir():
        fix = "name a folder that lisa-train convert wrote, or random to rehearse"
        raise PlanError([Finding("weights", "no such folder", weights, fix)])


def _on_gpu(question: Question, gpu: Gpu, model: str) -> Advice:
    """A plan for one of the large models on `gpu`."""
    base = base_plan(question, gpu, model)
    budget = question.budget(gpu)
    if budget is None:
        return _undecided(
            question,
            model,
            f"{gpu.name} does not say how much memory is free",
            f"name its size: lisa-advise --model {model} --vram 8GiB",
        )
    found = search(base, question.pinned, question.setting(gpu, budget))
    if isinstance(found, str):
        undecided = _undecided(question, model, found, "leave out --set")
        return undecided.model_copy(update={"gpu": gpu, "budget": budget})
    choice = found.choice
    best = choice.best
    reasons = [*_card_reasons(question, gpu, model)]
    whole = whole_segments(question, gpu)
    reasons += plan_reasons(found, gpu, budget, question.table.rows, question.overrides, whole)
    runs = best.verdict in ("FITS", "TIGHT")
    return Advice(
        verdict=best.verdict,
        summary=_summary(model, question.title(gpu), best, budget),
        model=model,
        plan=best.plan,
        command=command_of(question, model) if runs else None,
        environment=environment_of(question, gpu, best.plan),
        gpu=gpu,
        what_if=question.what_if,
        budget=budget,
        needs=best.needs,
        host_bytes=best.host_bytes,
        text_tokens=found.text_tokens,
        counted_by=found.counted_by,
        speed=best.speed,
        largest_micro_batch=largest_micro_batch(best.plan, found.scales, budget),
        reasons=tuple(reasons),
        considered=choice.considered,
        ladder=choice.ladder,
        better=choice.better,
        better_card_gib=smallest_card_gib(choice.better.needs.bytes) if choice.better else None,
        forecast=found.forecast,
        findings=(
            *question.table.findings,
            *card_findings(question, gpu, best, base),
            *([] if runs else nearest_plan(question, gpu, model, budget)),
        ),
        machine=question.machine,
    )


def _summary(model: str, card: str, best: Candidate, budget: Budget) -> str:
    needs, usable = gib(best.needs.bytes), gib(budget.usable.bytes)
    if best.why_not.startswith("host memory"):
        return f"{model} on {card}: {best.why_not}"
    if best.verdict == "FITS":
        return f"{model} on {card}: at most {needs} of {usable} usable"
    if best.verdict == "TIGHT":
        margin = gib(budget.margin.bytes)
        return f"{model} on {card}: {needs} reaches into the margin of {margin}"
    return f"{model} on {card}: needs {needs}, and {usable} are usable"


def _card_reasons(question: Question, gpu: Gpu, model: str) -> list[Reason]:
    reasons = []
    if question.model is None:
        because = f"the usual size; ask for another with --model ({model} is the default)"
        reasons.append(Reason(setting="model", value=model, because=because, basis="policy"))
    if len(question.machine.gpus) > 1 and not question.what_if:
        because = f"the most free memory of {len(question.machine.gpus)} visible GPUs"
        reasons.append(Reason(setting="gpu", value=gpu.name, because=because, basis="exact"))
    return reasons


def _undecided(question: Question, model: str, what: str, fix: str) -> Advice:
    return Advice(
        verdict="UNKNOWN",
        summary=f"{model}: {what}",
        model=model,
        what_if=question.what_if,
        findings=(*question.table.findings, Finding(model, what, fix=fix)),
        machine=question.machine,
    )


def _on_cpu(question: Question) -> Advice:
    """lisa-tiny on the CPU; a large model there cannot be decided."""
    rows = question.table.rows
    if question.model not in (None, "tiny"):
        model = str(question.model)
        overridden(Plan.parse({"model": model}), question.overrides, 1)  # bad settings come first
        what = "no tested row trains it on a CPU" if question.wants_cpu else "no usable GPU"
        return _undecided(question, model, what, f"lisa-advise --model {model} --vram 8GiB")
    tiny = tiny_cpu_plan()
    plan = overridden(tiny, question.overrides, tiny.micro_batch)
    if plan.device == "cuda":
        return _undecided(question, "tiny", "no usable GPU", "leave out --set device=cuda")
    row = next((row for row in rows if row.verdict == "FITS" and row.covers(_alone(plan))), None)
    if row is None:
        what = "no tested row covers these settings on a CPU"
        fix = "leave out --set, or try the settings with lisa-train without --auto"
        return _undecided(question, "tiny", what, fix).model_copy(update={"plan": plan})
    reasons = [
        Reason(setting="model", value="tiny", because=f"row {row.id}: {row.title}", basis="tested")
    ]
    if "dtype" not in assigned(question.overrides):
        because = "most CPUs compute bf16 no faster than fp32"
        reasons.append(Reason(setting="dtype", value=plan.dtype, because=because, basis="policy"))
    return Advice(
        verdict="FITS",
        summary=f"tiny on this machine's CPU ({question.machine.cpu_model or 'unknown model'})",
        model="tiny",
        plan=plan,
        command=command_of(question, "tiny"),
        reasons=tuple(reasons),
        findings=(*question.table.findings, _larger_models(question)),
        machine=question.machine,
    )


def _alone(plan: Plan) -> Plan:
    """lisa-tiny's plan on ReasonSeg alone: TINY_BYTES is enough for what a mixture's samples hold.

    0.42 GiB by forecast, at 512 tokens that are all supervised and 3 masks a sample.
    """
    return plan.model_copy(update={"mixture": Mixture()})


def _larger_models(question: Question) -> Finding:
    """What a card would make possible on a machine that trains on its CPU."""
    what = smallest_cards_text(("7b", "13b"))
    return Finding("with a GPU", what, fix="lisa-advise --vram 8GiB says how")


def _tiny_instead(question: Question, gpu: Gpu, large: Advice) -> Advice:
    """lisa-tiny because the default model does not fit; `large` if the settings rule that out."""
    try:
        tiny = _tiny_on_gpu(question, gpu)
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


def _tiny_on_gpu(question: Question, gpu: Gpu) -> Advice:
    """The demo's plan on a card: its 5 M parameters stay below TINY_BYTES by policy."""
    settings = ["device=cuda", f"dtype={dtype_of(gpu)}"]
    whole = whole_segments(question, gpu)
    if whole:
        settings.append("allocator=")
    usual = tiny_cpu_plan().override(settings)
    plan = overridden(usual, question.overrides, usual.micro_batch)
    if findings := refusals(question, gpu, plan):
        raise PlanError(findings)
    budget = question.budget(gpu)
    verdict: Verdict = "UNKNOWN"
    if budget is not None and needs_no_more(_alone(plan), usual):
        verdict = judge(TINY_BYTES, budget, question.spills)
    needs = Bytes(bytes=TINY_BYTES, basis="policy", source="5 M parameters")
    because = "its 5 M parameters and their activations are taken to stay below " + gib(TINY_BYTES)
    reasons = [
        *_card_reasons(replace(question, model="tiny"), gpu, "tiny"),
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
    given = assigned(question.overrides)
    runs = verdict in ("FITS", "TIGHT")
    return Advice(
        verdict=verdict,
        summary=f"tiny on {question.title(gpu)}: {summary}",
        model="tiny",
        plan=plan,
        command=command_of(question, "tiny") if runs else None,
        environment=environment_of(question, gpu, plan),
        gpu=gpu,
        what_if=question.what_if,
        budget=budget,
        needs=needs,
        reasons=tuple(reason for reason in reasons if reason.setting not in given),
        findings=(
            *question.table.findings,
            *machine_notes(question, gpu, plan),
            *neighbours(question, gpu),
        ),
        machine=question.machine,
    )
