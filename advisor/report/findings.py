"""What the user should know or fix beside the plan: the card, its neighbours, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from advisor.choice.candidate import Candidate
from advisor.choice.search import search, smallest_cards_text
from advisor.cost.duration import REASON_SEG
from advisor.machine.budget import Budget
from advisor.machine.gpu import Gpu
from advisor.machine.target import Target
from advisor.machine.torch_builds import older_build
from advisor.machine.versions import REMEDY, VERSIONS, newer_than_rows
from advisor.report.plan_words import plan_text
from advisor.request import Request, base_plan, whole_segments
from profiles.batches import shareable
from profiles.environment import ALLOCATOR_VARIABLES
from profiles.exchange import nccl_bytes
from profiles.findings import Finding, PlanError
from profiles.grid import caching_bytes
from profiles.host_memory import pinned_bytes
from profiles.measurement import DataCounts
from profiles.models import models
from profiles.overrides import assigned
from profiles.plan import Plan
from profiles.settings import EFFECTIVE_BATCH, MOST, TARGETS_PER_PICTURE
from profiles.sizes import gib
from profiles.text import counted, quoted

# What a finding is about: the user's own settings, and what the model sees.
SETTINGS, PICTURES = "settings", "pictures"
OPEN_NAME = "--gpu"  # where a card's name may mean several
UNIT = "--vram"  # where the card may be another than was typed: GB for GiB
DATA = "data"
BATCH = "batch"
FEW = 50  # pictures to train on: a policy
KEPT = "model", "device", "dtype", "processes", "nodes"  # no advice is to leave these out


def card_findings(
    request: Request, gpu: Gpu, best: Candidate, base: Plan, budget: Budget
) -> list[Finding]:
    """The card chosen, what does not fit and what would, what is missing, other processes."""
    findings = open_name(request.target)
    runs = best.verdict in ("FITS", "TIGHT")
    if not runs:
        findings.append(
            _lacking_host(request, gpu, base, budget, best) or _lacking_card(gpu, best, base)
        )
    elif "host_layers" in request.pinned and best.plan.host_layers:
        findings += _spared_host_layers(request, gpu, best.plan.model, budget)
    size = request.target.vram_bytes if request.target else None
    if size and size % 10**9 == 0:
        number = size // 10**9
        what = f"{number} GB are {gib(size)}, and a card sold as that has {number} GiB"
        findings.append(Finding(UNIT, what, fix=f"--vram {number}GiB"))
    if runs and not best.plan.profile.packaged and "weights" not in assigned(request.overrides):
        what = f"the published {best.plan.model} checkpoints must be converted first"
        command = best.plan.profile.conversion
        fix = f"{command}, then --weights FOLDER; or --weights random to rehearse"
        findings.append(Finding("weights", what, fix=fix))
        findings += released_start(best.plan)
    return findings + machine_notes(request, gpu, best.plan) + neighbours(request, gpu)


def _lacking_host(
    request: Request, gpu: Gpu, base: Plan, budget: Budget, best: Candidate
) -> Finding | None:
    """A finding that host memory is too small, if with more of it a plan would fit the card."""
    if budget.host is None:
        return None
    roomy = budget.model_copy(update={"host": None})
    setting = replace(request.setting(gpu, roomy), live=None, best_alone=True)
    found = search(base, request.pinned, setting)
    if isinstance(found, str):
        return None
    fitting = [one for one in found.choice.considered if one.verdict == "FITS"]
    if not fitting:
        return None
    if best.needs.bytes <= budget.usable.bytes:
        fitting.append(best)  # the plan that the verdict is of
    size, usable = min(one.host_bytes for one in fitting), budget.host.bytes
    lacks = f"{gib(usable)} are usable, and plans that fit the card take {gib(size)} or more"
    fix = "--ram SIZE for a machine with more" if request.what_if else "close other programs"
    if size <= usable:  # then it is what may be pinned
        least = min(fitting, key=lambda one: pinned_bytes(one.plan))
        lacks = budget.host_shortage(least.plan, least.host_bytes).removeprefix("host memory: ")
        fix = "train in a machine with more memory"
    return Finding(gpu.name, f"host memory is too small: {lacks}", fix=fix)


def _lacking_card(gpu: Gpu, best: Candidate, base: Plan) -> Finding:
    """A finding that the card's memory is too small, and which cards would do."""
    what = "too little usable memory"
    if best.needs.bytes == caching_bytes(best.plan):
        what += f": building the feature cache alone takes {gib(best.needs.bytes)}"
    return Finding(gpu.name, what, fix=smallest_cards_text([base.model], nccl_bytes(base)))


def few_pictures(counts: DataCounts) -> list[Finding]:
    """A note if there are fewer pictures to train on than any training here learnt from."""
    if counts.train_pictures >= FEW:
        return []
    what = f"{counted(counts.train_pictures, 'picture')} to train on may be too few: ReasonSeg has "
    what += str(REASON_SEG.train_pictures)
    return [Finding(DATA, what, fix="lisa-train evaluate RUN says whether training helped")]


def larger_batch(overrides: tuple[str, ...]) -> list[str]:
    """The batch of a step as a setting, where so many cards cannot share the usual one.

    Only where that is not the user's own, nor follows from other settings of the user's.
    """
    named = assigned(overrides)
    both = {"micro_batch", "accumulation"}
    if "effective_batch" in named or both <= named.keys():
        return []
    usual = "1" if "accumulation" in named else str(TARGETS_PER_PICTURE)
    numbers = [named.get("processes", "1"), named.get("questions_per_picture", usual)]
    numbers += [named.get(name, "1") for name in both]
    if not all(one.isdecimal() and 0 < int(one) <= MOST for one in numbers):
        return []  # which the plan refuses
    cards, questions, *parts = map(int, numbers)
    if cards == 1 or (batch := shareable(cards, questions, max(parts))) == EFFECTIVE_BATCH:
        return []
    if "questions_per_picture" not in named:
        batch = shareable(cards, 1, max(parts))
    return [f"effective_batch={batch}"]


def larger_batch_note(request: Request) -> Finding:
    """That so many cards cannot share the usual batch, and the number that they share instead."""
    named = assigned(request.overrides)
    parts = [f"{name}={named[name]}" for name in ("micro_batch", "accumulation") if name in named]
    cards = " with ".join([f"{named['processes']} cards", *parts])
    what = f"{named['effective_batch']} questions a step, as {cards} cannot share the usual "
    return Finding(BATCH, what + str(EFFECTIVE_BATCH), fix="--set effective_batch=N sets another")


def open_name(target: Target | None) -> list[Finding]:
    """A note if the named card may be another one, for which the answer differs."""
    if target is None or target.card is None or not target.others:
        return []
    smallest = target.card.memory_gb <= min(one.memory_gb for one in target.others)
    what = f"{target.card.title} is assumed, the {'smallest' if smallest else 'usual one'} "
    what += "of that name"
    return [Finding(OPEN_NAME, what, fix="--gpu " + " or ".join(one.key for one in target.others))]


def released_start(plan: Plan) -> list[Finding]:
    """A note that training may start from a released LISA of this size, if there is one.

    It needs no more memory: its decoder has the same shapes, and its pictures fewer tokens.
    """
    released = models().get(f"{plan.model}-v1")
    if released is None:
        return []
    what = "a released LISA, already trained to segment, fits as well and is the better start"
    return [Finding(released.name, what, fix=f"--model {released.name}")]


def smaller_pictures(plan: Plan | None, most: int, pinned: bool) -> Finding:
    """A note that `plan` shrinks pictures of up to `most` tokens, since no other plan fits.

    `pinned`: the user has fixed settings, and leaving some out would help as well.
    """
    assert plan is not None
    what = (
        f"{'with these settings ' if pinned else ''}no plan fits with pictures of up to {most} "
        "tokens; this one shrinks them to "
        f"{plan.profile.most_image_tokens} (max_pixels={plan.max_pixels}): "
        "the model sees small things less well"
    )
    fix = "leave out a setting, or take" if pinned else "take"
    return Finding(PICTURES, what, fix=f"{fix} a smaller model or a larger card")


def nearest_plan(request: Request, gpu: Gpu, model: str, budget: Budget) -> list[Finding]:
    """Which of the user's settings to drop so that a plan fits, and the plan that then fits.

    Tries each alone, then all together.
    """
    given = [key for key in assigned(request.overrides) if key not in KEPT]
    alone = [found for key in given if (found := _without(request, gpu, model, budget, [key]))]
    if alone or len(given) < 2:
        return alone
    together = _without(request, gpu, model, budget, given)
    return [together] if together else []


def _spared_host_layers(request: Request, gpu: Gpu, model: str, budget: Budget) -> list[Finding]:
    """A note if the layers that the user has put into host memory all fit on the card."""
    best = _best_without(request, gpu, model, budget, ["host_layers"])
    if best is None or best.plan.host_layers:
        return []
    return [_left_out(request, ["host_layers"], best)]


def _without(
    request: Request, gpu: Gpu, model: str, budget: Budget, dropped: list[str]
) -> Finding | None:
    best = _best_without(request, gpu, model, budget, dropped)
    return None if best is None else _left_out(request, dropped, best)


def _best_without(
    request: Request, gpu: Gpu, model: str, budget: Budget, dropped: list[str]
) -> Candidate | None:
    """The plan without some of the user's settings; None where none fits."""
    rest = tuple(o for o in request.overrides if not assigned([o]).keys() & set(dropped))
    other = replace(request, overrides=rest, live=None, best_alone=True)
    try:
        found = search(base_plan(other, gpu, model), other.pinned, other.setting(gpu, budget))
    except PlanError:
        return None  # the others do not go without it
    if isinstance(found, str) or found.choice.best.verdict != "FITS":
        return None
    return found.choice.best


def _left_out(request: Request, dropped: list[str], best: Candidate) -> Finding:
    given = assigned(request.overrides)
    what = f"a plan fits without {' '.join(f'{key}={given[key]}' for key in dropped)}"
    those = "it" if len(dropped) == 1 else "them"
    fix = f"leave {those} out: {plan_text(best.plan)}, {gib(best.needs.bytes)}"
    return Finding(SETTINGS, what, fix=fix)


def machine_notes(request: Request, gpu: Gpu, plan: Plan) -> list[Finding]:
    """What this card or machine needs besides the plan."""
    installed = "" if request.what_if else request.evidence.versions.get("torch", "")
    older = older_build(gpu, installed)
    findings = [] if older is None else [older]
    why, planned = whole_segments(request, gpu), plan.segments == "expandable"
    if why and (planned or not request.windows):  # on Windows nobody expects them
        fix = "--set allocator=" if planned else "none needed: the plan does not use them"
        findings.append(Finding(gpu.name, why, fix=fix))
    if found := shell_allocator(request.evidence.environment, plan):
        findings.append(found)
    evidence = request.evidence
    newer = newer_than_rows(evidence.versions, evidence.table.rows)
    if newer and not request.what_if:
        what = f"newer here than in any tested row: {newer}; memory is forecast, not measured"
        findings.append(Finding(VERSIONS, what, fix=REMEDY))
    return findings + unequal_cards(request, gpu)


def unequal_cards(request: Request, gpu: Gpu) -> list[Finding]:
    """A note if cards that run together differ: the plan is for the worst of each."""
    used = request.used(gpu)
    if len({(one.name, one.total_bytes) for one in used}) < 2:
        return []
    free = ", ".join(f"{one.name} {gib(one.free_bytes or 0)} free" for one in used)
    slowest = request.card(gpu)
    what = f"the cards differ ({free}): the least free memory decides what fits"
    what += f", and all wait for the {slowest.title}" if slowest is not None else ""
    return [Finding("GPUs", what, fix="CUDA_VISIBLE_DEVICES leaves cards out")]


def shell_allocator(environ: Mapping[str, str], plan: Plan) -> Finding | None:
    """What the shell sets for torch's allocator, and that the plan's counts instead."""
    for name in ALLOCATOR_VARIABLES:
        got = environ.get(name)
        if got and got != plan.allocator and plan.device == "cuda":
            what = "is set in this shell; lisa-train overrides it with the plan's "
            what += repr(plan.allocator)
            fix = f"--set allocator={quoted(got)} has it forecast and used"
            return Finding(name, what, got, fix)
    return None


def neighbours(request: Request, gpu: Gpu) -> list[Finding]:
    """Other processes that take memory on that card, or may."""
    findings = []
    if gpu.other_processes and gpu.other_process_bytes:
        held = gib(gpu.other_process_bytes)
        what = f"{held} are held by other processes ({gpu.other_processes})"
        findings.append(Finding(gpu.name, what, fix="stop them to train with larger batches"))
    if gpu.display_active:
        what = "drives a display, which may take more memory during a run"
        findings.append(Finding(gpu.name, what))
    if request.spills:
        what = (
            "past the limit steps become very slow instead of failing"  # whole on the first screen
        )
        fix = "the driver moves tensors to host memory: watch the step time"
        findings.append(Finding("windows", what, fix=fix))
    return findings
