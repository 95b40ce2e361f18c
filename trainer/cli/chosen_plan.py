"""The plan of a new training: a file's, or the one that the advisor chooses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from profiles.exits import fail
from profiles.overrides import assigned, of_another
from profiles.streams import tell
from trainer.cli.planned_run import refuse_early
from trainer.cli.ranks import as_launched, launch_settings, weakest
from trainer.cli.train_options import TrainOptions
from trainer.parallel.launch import is_launched

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.machine.gpu import Machine
    from profiles.plan import Plan
    from trainer.run.started import Started


def chosen_plan(options: TrainOptions, started: Started) -> tuple[Plan, Advice | None]:
    """The plan of the file with the settings, or the advisor's plan with the advice."""
    assignments = options.assignments()
    own = options.lora_alpha is not None or "lora.alpha" in assigned(options.settings or ())
    if options.lora_r is not None and not own:
        alpha = assigned(assignments)["lora.alpha"]
        tell(f"note: --lora-r {options.lora_r} makes alpha {alpha}; --lora-alpha sets another")
    if options.plan is not None:
        plan, advice = _of_file(options.plan, options, assignments), None
    else:
        if not options.auto:
            tell("no --plan given: training the one that lisa-advise chooses (--auto)")
        assignments += launch_settings(assigned(assignments))
        plan, advice = _of_advisor(options, started, assignments)
    return as_launched(plan, assigned(assignments)), advice


def _of_file(path: Path, options: TrainOptions, assignments: list[str]) -> Plan:
    from profiles.plan import Plan

    base = Plan.read(path)
    plan = base.override(assignments + ([f"model={options.model}"] if options.model else []))
    if note := of_another(base.model, plan.model):
        tell(note)
    refuse_gpus_on_cpu(options.gpus, plan.device == "cpu")
    _refuse_large_on_cpu(plan.model, plan.device == "cpu")
    return plan


def _of_advisor(
    options: TrainOptions, started: Started, assignments: list[str]
) -> tuple[Plan, Advice]:
    """The advice's plan, dry-run where there is a card. Ends where none of its plans can run."""
    from advisor.dry_run import measured
    from advisor.machine.probe import probe
    from advisor.machine.target import pick_gpu

    here = probe()
    machine = weakest(here)
    on_cpu = pick_gpu(machine) is None or assigned(assignments).get("device") == "cpu"
    refuse_gpus_on_cpu(options.gpus, on_cpu)
    advice = _advised(machine, options, started.data, assignments)
    _refuse_absent_cards(machine, assignments)
    _refuse_large_on_cpu(advice.model, on_cpu)
    _print_findings(advice)
    if {gpu.uuid for gpu in machine.gpus} <= {gpu.uuid for gpu in here.gpus}:
        if advice.plan is not None and not on_cpu and not advice.exit_code:
            refuse_early(advice.plan, advice.environment, started)
        advice = measured(advice, tell)
    tell(f"{advice.verdict}: {advice.summary}")
    return _must_run(advice, options.auto), advice


def _advised(machine: Machine, options: TrainOptions, data: Path, assignments: list[str]) -> Advice:
    from advisor.machine.evidence import Evidence
    from advisor.memory.live import live_forecast
    from advisor.preflight import advise

    live, evidence = live_forecast(machine, None, data, tell), Evidence.here()
    return advise(machine, options.model, tuple(assignments),
                  data=data, live=live, evidence=evidence, prefer=options.prefer)  # fmt: skip


def _print_findings(advice: Advice) -> None:
    """Print the advice's findings that concern a training of its plan."""
    from advisor.machine.torch_builds import TORCH
    from advisor.machine.versions import VERSIONS
    from advisor.report.findings import BATCH, PICTURES

    for finding in advice.findings:
        if finding.where in (VERSIONS, BATCH, PICTURES, TORCH):
            tell(f"note: {finding}")


def _must_run(advice: Advice, auto: bool) -> Plan:
    """The advice's plan. Ends with the advice's exit code if there is none, or it does not fit.

    lisa-tiny is small enough to try untested settings, unless the user asked for advice (`auto`).
    """
    from profiles.models import model_profile

    tries = not auto and model_profile(advice.model).packaged and advice.verdict == "UNKNOWN"
    if advice.plan is None or (advice.exit_code and not tries):
        for finding in advice.findings:
            if finding.where == advice.model and finding.fix:
                tell(f"    hint: {finding.fix}")
        raise typer.Exit(advice.exit_code)
    return advice.plan


def _refuse_large_on_cpu(model: str, on_cpu: bool) -> None:
    """End if a large model would train on the CPU, where an epoch takes days."""
    from profiles.models import model_profile

    if on_cpu and not model_profile(model).packaged:
        fail(
            f"{model}: training it needs a GPU; on a CPU one epoch would take days\n"
            "    hint: lisa-advise doctor says what is missing here, "
            f"lisa-advise --model {model} --vram 8GiB what a card could do; "
            "--model tiny trains on a CPU"
        )


def refuse_gpus_on_cpu(gpus: int | None, on_cpu: bool) -> None:
    """End if --gpus asks for GPUs and the training would run on the CPU."""
    if gpus is not None and on_cpu:
        fail(
            f"--gpus: got {gpus}, and this training would be on the CPU\n"
            "    hint: lisa-advise doctor says what a GPU here lacks; "
            f"--set processes={gpus} starts as many processes on the CPU"
        )


def _refuse_absent_cards(machine: Machine, assignments: list[str]) -> None:
    """End if this machine is to start more processes than it has cards. Raises PlanError."""
    from advisor.request import must_have_cards

    if not is_launched(os.environ):  # else each rank has a card of its own
        must_have_cards(machine, assignments)
