"""The story: probe, look up the tested configurations, choose, and say why.

`advise` takes a Machine and returns an Advice; it prints nothing, exits nowhere and imports no
torch. `lisa-advise` renders the Advice and `lisa-train --auto` runs its plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from advisor.advice import Advice, undecided
from advisor.choice.candidate import Candidate
from advisor.choice.preference import SAME_PACE, STORAGES
from advisor.choice.search import (
    largest_micro_batch,
    search,
    smallest_card_gib,
)
from advisor.cost.disk import disk_of
from advisor.cost.duration import assumed_size, duration_of, with_sparing
from advisor.cost.several import Planned, numbers, several
from advisor.dry_run import known_trial
from advisor.machine.budget import Budget
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.target import Target, best_gpus, gpu_for
from advisor.machine.torch_builds import too_old
from advisor.memory.live import CountingLive, Live
from advisor.memory.parts import parts_of
from advisor.report.findings import (
    DATA,
    SETTINGS,
    card_findings,
    few_pictures,
    larger_batch,
    larger_batch_note,
    nearest_plan,
)
from advisor.report.plan_words import storage_text
from advisor.report.reasons import card_reasons, plan_reasons
from advisor.request import (
    Request,
    base_plan,
    command_of,
    environment_of,
    wanted_model,
    whole_segments,
)
from advisor.smaller_pictures import with_smaller_pictures
from advisor.tiny import on_cpu, tiny_instead, tiny_on_gpu
from profiles.exchange import nccl_bytes
from profiles.exits import EXIT_FAILED
from profiles.findings import Finding, PlanError
from profiles.measurement import DataCounts
from profiles.models import DEFAULT_MODELS
from profiles.overrides import assigned
from profiles.preferences import Preference
from profiles.settings import MOST
from profiles.sizes import gib


def advise(
    machine: Machine,
    model: str | None = None,
    overrides: Iterable[str] = (),
    target: Target | None = None,
    *,
    data: Path | None = None,
    text_tokens: int | None = None,
    live: Live | None = None,
    evidence: Evidence | None = None,
    exact: bool = False,
    prefer: Preference = "usual",
    size: DataCounts | None = None,
) -> Advice:
    """The advice for `machine`, or for `target` instead of its card.

    overrides: `key=value` settings that the choice keeps.
    text_tokens: of the longest sample; None: the longest of `data`, or else the plan's limit.
    live: forecasts a plan at a text length (None: the longest of `data`) where the shipped grid
        does not reach, or if `exact` figures are wanted.
    evidence: rows, contexts and versions; None: what is shipped.
    prefer: the order in which plans are preferred.
    size: how much there is to train on, if there is no `data` to count.

    Raises PlanError for an unknown model and for settings that cannot run, and whatever `live`
    raises.
    """
    overrides = tuple(overrides)
    counting = CountingLive(live) if live is not None else None
    request = Request(
        machine=machine,
        model=wanted_model(model, assigned(overrides).get("model")),
        overrides=overrides,
        evidence=Evidence.shipped() if evidence is None else evidence,
        target=target,
        data=data,
        text_tokens=text_tokens,
        live=counting,
        exact=exact,
        prefer=prefer,
        size=size,
    )
    larger = [] if request.wants_packaged else larger_batch(overrides)
    request = replace(request, overrides=(*overrides, *larger))
    found = with_costs(request, _advised(request), counting)
    notes = [larger_batch_note(request)] if larger else []
    return found.model_copy(update={"findings": (*notes, *found.findings)})


def with_costs(request: Request, advice: Advice, counting: CountingLive | None) -> Advice:
    """The advice with the time and disk that its training takes, for the data as counted.

    Without data, for the size in the request, or ReasonSeg's. Data that was not counted has no
    figures.
    """
    counts, image_tokens = (counting.counts, counting.image_tokens) if counting else (None, None)
    if advice.plan is None or (request.data is not None and counts is None):
        return advice
    gpu, own = advice.gpu, counts or request.size
    size = own or assumed_size(advice.plan)
    plan = advice.plan.with_pictures_of(image_tokens)
    if size is None:
        what = "time and disk of a mixture are not known without its data"
        unknown = Finding("mixture", what, fix="--data-dir DIR counts it")
        return advice.model_copy(update={"findings": (unknown, *advice.findings)})
    costs: dict[str, object] = {"disk": disk_of(plan, size)}
    if own is not None:
        costs["findings"] = (*few_pictures(own), *advice.findings)
    if gpu is not None:
        trial = None if request.what_if else known_trial(advice, gpu, request.evidence)
        costs["duration"] = with_sparing(plan, request.card(gpu), size, trial)
        costs["several"] = several(_on_cards(request, advice), size)
    found = advice.model_copy(update=costs)
    notes = _asking_once(request, found) if own is None and found.command else []
    return found.model_copy(update={"findings": (*found.findings, *notes)})


def _asking_once(request: Request, advice: Advice) -> list[Finding]:
    """A note if another plan is better for one question a picture, as most users' data have.

    Better means that it rounds less, or is faster by more than SAME_PACE. This takes a second
    search, so it is done only for a single advice with live forecasts, not for long tables.
    """
    plan, was = advice.plan, advice.duration
    if request.live is None or "questions_per_picture" in request.pinned:
        return []
    if plan is None or was is None or was.data is None or plan.questions_per_picture == 1:
        return []
    once = _planned_with(request, advice, ("questions_per_picture=1",))
    if once is None or not once.best:
        return []
    takes = duration_of(once.plan, once.card, was.data).seconds
    finer = STORAGES.index(once.plan.quantization) < STORAGES.index(plan.quantization)
    if not finer and takes * SAME_PACE > was.seconds:
        return []
    saved = 1 - takes / was.seconds
    pace = f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} time"
    rounded = f", {storage_text(once.plan)}" if finer else ""
    what = f"pictures with one question: {pace}{rounded}"
    return [Finding(DATA, what, fix="--set questions_per_picture=1")]


def _on_cards(request: Request, advice: Advice) -> Iterator[Planned]:
    """The plans advised for one card, two cards and so on; none if the request is for one card.

    All cards of a machine are used before a second machine is. Numbers of cards that cannot share
    the batch are left out.
    """
    plan, gpu = advice.plan, advice.gpu
    assert plan is not None and gpu is not None
    most = plan.processes if plan.processes > 1 else _cards_here(request)
    each = plan.local_processes if plan.processes > 1 else most
    for number in numbers(most) if advice.command and most > 1 else ():
        settings = f"processes={number}", f"nodes={-(-number // each)}"
        if number == plan.processes:
            yield Planned(plan, request.card(gpu))
        elif found := _planned_with(request, advice, settings):
            yield found


def _planned_with(request: Request, advice: Advice, settings: tuple[str, ...]) -> Planned | None:
    """The plan that would be advised with other settings; or else the advised one with them."""
    assert advice.plan is not None and advice.gpu is not None
    asked = _with_settings(request, advice, settings)
    with suppress(PlanError):
        found = _advised(asked)
        if found.command and found.plan is not None and found.gpu is not None:
            return Planned(found.plan, asked.card(found.gpu))
    with suppress(PlanError):
        return Planned(advice.plan.override(settings), asked.card(advice.gpu), best=False)
    return None


def _with_settings(request: Request, advice: Advice, settings: Iterable[str]) -> Request:
    """The request for what was advised with other settings, without counting the data again."""
    known = list(settings)
    if advice.plan is not None and request.data is not None:
        known.append(f"questions_per_picture={advice.plan.questions_per_picture}")
    named = assigned(known)
    kept = [text for text in request.overrides if not named.keys() & assigned([text]).keys()]
    return replace(
        request,
        model=advice.model,
        overrides=(*kept, *known),
        data=None,
        text_tokens=advice.text_tokens,
        live=None,
        exact=False,
        best_alone=True,
    )


def _cards_here(request: Request) -> int:
    """Cards that this machine could run a plan on, if the user has named no number."""
    named = {"processes", "nodes"} & request.pinned
    return (
        1 if request.what_if or request.windows or named else len(best_gpus(request.machine, MOST))
    )


def _advised(request: Request) -> Advice:
    """The advice, without what it costs."""
    must_be_folder(assigned(request.overrides).get("weights", "default"))
    gpu = gpu_for(request.machine, request.target, request.cards_each)
    if request.target is not None and request.wants_cpu:
        fix = "leave out one of the two"
        raise PlanError([Finding("device", "cpu contradicts a named card", "cpu", fix)])
    if gpu is None or request.wants_cpu:
        return on_cpu(request)
    if old := too_old(gpu):
        model = request.model or DEFAULT_MODELS[0]
        return undecided(request, model, f"{gpu.name} {old.what}", old.fix)
    if request.wants_packaged:
        return tiny_on_gpu(request, gpu)
    asked = DEFAULT_MODELS if request.model is None else (request.model,)
    tried = []
    for model in asked:
        tried.append(_on_gpu(request, gpu, model))
        if tried[-1].exit_code != EXIT_FAILED:
            return _instead_of(tried[0], tried[-1])
    for advice in tried:
        on_gpu = partial(_on_gpu, gpu=gpu, model=advice.model)
        if smaller := with_smaller_pictures(request, advice, on_gpu):
            return smaller
    last = tried[-1]
    if request.model is not None:
        return last
    tiny = tiny_instead(request, gpu, last)
    return _instead_of(tried[0], last) if tiny is last else tiny


def _instead_of(usual: Advice, advice: Advice) -> Advice:
    """The advice for a smaller default model, with a note on why it is not the usual one."""
    if advice is usual:
        return advice
    fix = f"--model {usual.model} says what it needs"
    note = Finding("model", f"{usual.summary}, so the smaller {advice.model}", fix=fix)
    kept = [finding for finding in usual.findings if finding.where == SETTINGS]
    return advice.model_copy(update={"findings": (note, *kept, *advice.findings)})


def must_be_folder(weights: str) -> None:
    """Raise PlanError if the named weights do not exist."""
    if weights not in ("default", "random") and not Path(weights).expanduser().is_dir():
        fix = "name a folder that lisa-train convert wrote, or random to rehearse"
        raise PlanError([Finding("weights", "no such folder", weights, fix)])


def _on_gpu(request: Request, gpu: Gpu, model: str) -> Advice:
    """A plan for one of the large models on `gpu`."""
    base = base_plan(request, gpu, model)
    budget = request.budget(gpu, base)
    if budget is None:
        return undecided(
            request,
            model,
            f"{gpu.name} does not report how much memory is free",
            f"name its size: lisa-advise --model {model} --vram 8GiB",
        )
    found = search(base, request.pinned, request.setting(gpu, budget))
    if isinstance(found, str):
        advice = undecided(request, model, found, "leave out --set")
        return advice.model_copy(update={"gpu": gpu, "budget": budget})
    choice = found.choice
    best = choice.best
    reasons = [*card_reasons(request, gpu, model)]
    whole = whole_segments(request, gpu)
    if not request.best_alone:
        reasons += plan_reasons(found, gpu, budget, request.table.rows, request.overrides, whole)
    runs = best.verdict in ("FITS", "TIGHT")
    return Advice(
        verdict=best.verdict,
        summary=_summary(model, request.title(gpu), best, budget),
        model=model,
        plan=best.plan,
        command=command_of(request, model) if runs else None,
        environment=environment_of(request, gpu, best.plan),
        gpu=gpu,
        what_if=request.what_if,
        budget=budget,
        needs=best.needs,
        parts=parts_of(best.plan, found.text_tokens, best.needs.bytes, found.forecast),
        host_bytes=best.host_bytes,
        text_tokens=found.text_tokens,
        counted_by=found.counted_by,
        speed=best.speed,
        largest_micro_batch=largest_micro_batch(best.plan, found.scales, budget),
        reasons=tuple(reasons),
        considered=choice.considered,
        ladder=choice.ladder,
        better=choice.better,
        prefer=request.prefer,
        alternatives=choice.alternatives,
        better_card_gib=_card_for(choice.better),
        forecast=found.forecast,
        findings=(
            *request.table.findings,
            *card_findings(request, gpu, best, base, budget),
            *([] if runs else nearest_plan(request, gpu, model, budget)),
        ),
        machine=request.machine,
    )


def _card_for(better: Candidate | None) -> int | None:
    """The smallest usual card for a plan, NCCL's buffers included."""
    if better is None:
        return None
    return smallest_card_gib(better.needs.bytes + nccl_bytes(better.plan))


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
