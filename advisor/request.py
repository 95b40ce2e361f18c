"""The request: machine, card and fixed settings; and what follows from them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from advisor.choice.scales import Setting
from advisor.machine.budget import (
    Budget,
    budget_of,
)
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import UNNAMED, Gpu, Machine
from advisor.machine.target import Target, best_gpus, cards_text
from advisor.machine.torch_builds import too_old
from advisor.memory.live import Live
from profiles import skipping
from profiles.batches import micro_batches
from profiles.environment import ALLOCATOR_VARIABLES
from profiles.exchange import nccl_bytes
from profiles.findings import Finding, PlanError
from profiles.gpus import WITH_FP8, GpuProfile, gpu_by_nvml
from profiles.measurement import DataCounts
from profiles.models import model_profile
from profiles.overrides import assigned
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.settings import MOST, TARGETS_PER_PICTURE
from profiles.tested import Table
from profiles.text import argument, counted, quoted

# NVIDIA's WSL drivers before R615 fail at them on some cards (pytorch/pytorch#192330).
WSL_SEGMENTS_DRIVER = 615


@dataclass(frozen=True)
class Request:
    """What was asked for, the machine, and the evidence."""

    machine: Machine
    model: str | None
    overrides: tuple[str, ...]
    evidence: Evidence
    target: Target | None
    data: Path | None
    text_tokens: int | None
    live: Live | None
    exact: bool = False
    prefer: Preference = "usual"
    guess: float = 1.0  # the first correction of the grid's figures for plans beyond it
    size: DataCounts | None = None  # how much there is to train on, where that was not counted
    best_alone: bool = False  # the plan alone counts, not what is around it

    @property
    def what_if(self) -> bool:
        """Whether the card is not in this machine."""
        return self.target is not None

    @property
    def windows(self) -> bool:
        """Whether the run is on Windows itself: no expandable segments, no Triton."""
        return self.target.windows if self.target else self.machine.platform == "windows"

    @property
    def spills(self) -> bool:
        """Whether the driver moves tensors to host memory instead of failing."""
        if self.target:
            return self.target.windows
        # A data-centre card may run without Windows' own memory manager (TCC).
        managed = all(gpu.wddm is not False for gpu in self.machine.gpus)
        return managed and self.machine.platform in ("windows", "wsl")

    @property
    def wants_cpu(self) -> bool:
        """Whether the user's settings name the CPU."""
        return assigned(self.overrides).get("device") == "cpu"

    @property
    def wants_packaged(self) -> bool:
        """Whether the model asked for comes with this package and trains on any machine."""
        return self.model is not None and model_profile(self.model).packaged

    @property
    def table(self) -> Table:
        """The tested rows."""
        return self.evidence.table

    @property
    def pinned(self) -> set[str]:
        """The plan's fields that the user has set, wholly or in part."""
        return {name.partition(".")[0] for name in assigned(self.overrides)}

    @property
    def nodes(self) -> int:
        """Machines that the user has asked for."""
        return _count(self.overrides, "nodes")

    @property
    def cards_each(self) -> int:
        """Cards of one machine, each with a process, that the user has asked for."""
        return max(1, _count(self.overrides, "processes") // self.nodes)

    def used(self, gpu: Gpu) -> list[Gpu]:
        """The cards of one machine that run the plan; `gpu` is the worst of them.

        If the machine shows only that one, as under a launcher, it stands for all.
        """
        alone = self.target is not None or self.cards_each == 1
        cards = [] if alone else best_gpus(self.machine, self.cards_each)
        return cards if len(cards) == self.cards_each else [gpu] * self.cards_each

    def title(self, gpu: Gpu) -> str:
        """The name of the cards; with their memory where they are sold with several."""
        if self.target and self.target.card:
            return cards_text([self.target.title] * self.cards_each, self.nodes)
        return cards_text([one.name for one in self.used(gpu)], self.nodes)

    def budget(self, gpu: Gpu, plan: Plan) -> Budget | None:
        """What each process of a plan may take on `gpu`; None where its free memory is unknown."""
        ram = self.target.host_bytes(self.cards_each) if self.target else None
        return budget_of(gpu, self.machine, ram, self.evidence, nccl_bytes(plan))

    def card(self, gpu: Gpu) -> GpuProfile | None:
        """The catalogue's entry for the card; the slowest if several match.

        None if it has no entry, or if only its size is known.
        """
        if self.target and self.target.card:
            return self.target.card
        known = [gpu_by_nvml(one.name, one.total_bytes) for one in self.used(gpu)]
        found = [one for one in known if one is not None]
        if not found or len(found) < len(known):
            return None
        return min(found, key=lambda one: one.fp16_tflops)

    def setting(self, gpu: Gpu, budget: Budget) -> Setting:
        """What a search on `gpu` depends on."""
        return Setting(
            budget=budget,
            card=self.card(gpu),
            rows=self.table.rows,
            torch=self.evidence.versions.get("torch", ""),
            spills=self.spills,
            refusals=partial(refusals, self, gpu),
            live=self.live,
            prefer=self.prefer,
            data=self.data,
            text_tokens=self.text_tokens,
            exact=self.exact,
            questions=self.size.most_questions if self.size else None,
            guess=self.guess,
            best_alone=self.best_alone,
        )


def must_have_cards(machine: Machine, overrides: Sequence[str]) -> None:
    """Raise PlanError if a machine that has GPUs has fewer than it is asked to run at once."""
    nodes = _count(overrides, "nodes")
    count, asked = len(best_gpus(machine, MOST)), _count(overrides, "processes") // nodes
    if not count or asked <= count or assigned(overrides).get("device") == "cpu":
        return
    what = f"this machine shows {counted(count, 'usable GPU')}"
    fix = f'lisa-advise takes --gpu "{asked}x NAME" for cards that are elsewhere'
    raise PlanError([Finding("--gpus", what, str(asked), fix)])


def _count(overrides: Sequence[str], name: str) -> int:
    """A whole number that the user has set; 1 if it is not set, or not a valid one."""
    text = assigned(overrides).get(name, "1")
    return max(1, int(text)) if text.isdecimal() else 1


def wanted_model(named: str | None, override: str | None) -> str | None:
    """The model asked for by --model or --set model=..., None for neither. Raises PlanError."""
    if named is not None and override is not None and named != override:
        fix = "give it once"
        raise PlanError(
            [Finding("--model", "differs from --set model", f"{named}, {override}", fix)]
        )
    wanted = override if named is None else named
    if wanted is not None:
        try:
            model_profile(wanted)
        except ValueError as error:
            raise PlanError([Finding("--model", str(error))]) from None
    return wanted


def base_plan(request: Request, gpu: Gpu, model: str) -> Plan:
    """The Plan's own defaults on that card, with the user's settings. Raises PlanError."""
    settings: dict[str, object] = {"model": model, "device": "cuda", "dtype": dtype_of(gpu)}
    settings["checkpointed_layers"] = "all"
    if whole_segments(request, gpu):
        settings["allocator"] = ""
    plan = _with_questions(request, settings)
    findings = refusals(request, gpu, plan)
    if findings:
        raise PlanError(findings)
    return plan


def _with_questions(request: Request, settings: Mapping[str, object]) -> Plan:
    """The plan with as many questions a row as pictures have, unless the user set that number.

    Rows of several questions may be divided unevenly, so more numbers of processes are possible.
    Raises PlanError.
    """
    if not {"questions_per_picture", "accumulation"} & request.pinned:
        shared = {**settings, "questions_per_picture": TARGETS_PER_PICTURE}
        with suppress(PlanError):  # such as more processes than rows
            return overridden(Plan.parse(shared), request.overrides, largest_micro_batch=1)
    return overridden(Plan.parse(settings), request.overrides, largest_micro_batch=1)


def whole_segments(request: Request, gpu: Gpu) -> str:
    """Why a run there has no expandable segments; empty where it has."""
    if request.windows:
        return "Windows has no expandable segments"
    if request.what_if:
        return ""
    why = (lacks_segments(request.machine, one) for one in request.used(gpu))
    return next(filter(None, why), "")


def lacks_segments(machine: Machine, gpu: Gpu) -> str:
    """Why this machine's card has no expandable segments; empty where it is taken to have them."""
    if machine.platform == "windows":
        return "Windows has no expandable segments"
    if gpu.unified_memory:
        return "the card shares the host's memory, where expandable segments are reported to hang"
    if gpu.vgpu:
        return "a virtual GPU (vGPU) has no virtual memory management for expandable segments"
    if gpu.vgpu is None and gpu.name == UNNAMED:
        return "without its name, the card may be a vGPU, which has no expandable segments"
    if machine.platform == "wsl" and (machine.driver_branch or 0) < WSL_SEGMENTS_DRIVER:
        return f"under WSL expandable segments need a driver of {WSL_SEGMENTS_DRIVER} or later"
    return ""


def unfit_segments(machine: Machine, gpu: Gpu, plan: Plan) -> Finding | None:
    """A finding if the plan uses expandable segments and this machine's card does not have them."""
    if plan.device != "cuda" or plan.segments == "whole":
        return None
    why = lacks_segments(machine, gpu)
    got = f"allocator={plan.allocator}"
    return Finding(gpu.name, why, got, fix="--set allocator=") if why else None


def refusals(request: Request, gpu: Gpu, plan: Plan) -> list[Finding]:
    """Why the plan cannot run on that card; an unknown card is taken to be a recent one."""
    if old := too_old(gpu):
        return [old]
    if plan.processes > 1 and plan.device == "cuda" and request.windows:
        what = "several cards exchange gradients by NCCL, which torch has not on Windows"
        return [Finding("processes", what, str(plan.processes), "run under WSL 2 or Linux")]
    return unable(gpu, plan, request.windows)


def unable(gpu: Gpu, plan: Plan, windows: bool) -> list[Finding]:
    """What the plan computes that this card, or this system, cannot."""
    recent = gpu.compute_capability is None or gpu.compute_capability >= (7, 0)
    triton = recent and not windows
    fp8 = gpu.compute_capability is None or gpu.compute_capability >= WITH_FP8
    return plan.refusals(gpu.name, bf16=gpu.bf16 is not False, triton=triton, fp8=fp8)


def dtype_of(gpu: Gpu) -> str:
    """The compute dtype on `gpu`."""
    return "fp16" if gpu.bf16 is False else "bf16"


def environment_of(request: Request, gpu: Gpu, plan: Plan) -> dict[str, str]:
    """Variables that make torch use that card and allocator; both of the allocator's names."""
    environment: dict[str, str] = {}
    if plan.allocator:
        environment |= dict.fromkeys(ALLOCATOR_VARIABLES, plan.allocator)
    names = [one.uuid for one in request.used(gpu)]
    # Other machines have other cards.
    if len(request.machine.gpus) > len(names) and not request.what_if and request.nodes == 1:
        known = [name for name in names if name]
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(known)} if known == names else {}
    return environment


def command_of(request: Request, model: str) -> str:
    """Command lines that train as advised; DIR and FOLDER are the user's data and weights.

    Two lines where two are needed: not every shell has `&&`.
    """
    given = assigned(request.overrides)
    options = f"--model {model}"
    on_cards = request.what_if or (request.machine.gpus and not request.wants_cpu)
    shown_apart = ("model=", "weights=", *(("processes=", "nodes=") if on_cards else ()))
    for text in request.overrides:
        if not text.startswith(shown_apart):
            options += f" --set {quoted(text)}"
    if on_cards:
        options += f" --gpus {request.cards_each}" if request.cards_each > 1 else ""
        options += f" --nodes {request.nodes}" if request.nodes > 1 else ""
    if request.prefer != "usual":
        options += f" --prefer {request.prefer}"
    if "weights" in given:
        options += f" --weights {argument(given['weights'])}"
    needed = weights_needed(model, given.get("weights", "default"))
    folder = argument(request.data) if request.data is not None else "DIR"
    folder += skipping.option(request.evidence.environment)
    program = lisa_train(request.nodes, request.cards_each)
    if request.target is None:
        return f"{program} --auto {options}{needed} --data-dir {folder}"
    data = f" --data-dir {folder}" if request.data is not None else _counts(request.size)
    return (
        f"lisa-advise {options} {request.target.options}{data} --save plan.json"
        f"\n{program} --plan plan.json{needed} --data-dir {folder}"
    )


def _counts(size: DataCounts | None) -> str:
    """The options that say how much there is to train on: plans are chosen by them."""
    if size is None:
        return ""
    pictures = size.train_pictures + size.val_pictures
    questions = size.epoch_questions + size.val_questions
    return f" --pictures {pictures}" + (f" --questions {questions}" * (questions != pictures))


def lisa_train(nodes: int, cards: int) -> str:
    """How to start lisa-train: it starts one machine's processes itself; for more use torchrun."""
    if nodes == 1:
        return "lisa-train"
    return (
        f"torchrun --nnodes {nodes} --nproc_per_node {cards} --rdzv_backend c10d "
        "--rdzv_endpoint HOST:29400 --no_python lisa-train"
    )


def weights_needed(model: str, weights: str) -> str:
    """The option that a command needs if the model has no packaged weights and none are named."""
    return " --weights FOLDER" if weights == "default" and not model_profile(model).packaged else ""


def overridden(plan: Plan, overrides: Sequence[str], largest_micro_batch: int) -> Plan:
    """`plan` with the user's settings, its effective batch kept. Raises PlanError.

    Unless the user sets it, the micro-batch is the largest divisor of the effective batch up to
    `largest_micro_batch`: fewer samples at once need less memory, so what was tested at that size
    stays an upper bound.
    """
    apart = {"micro_batch": 1, "accumulation": None, "processes": 1}
    plan = Plan.parse(plan.model_dump(mode="json") | apart).override(overrides)
    if {"micro_batch", "accumulation"} & set(assigned(overrides)):
        return plan
    return plan.override([f"micro_batch={micro_batches(plan, largest_micro_batch)[-1]}"])
