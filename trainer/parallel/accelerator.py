"""Accelerate, set up for a plan."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DataLoaderConfiguration, InitProcessGroupKwargs

from profiles.plan import Plan
from trainer.parallel.lost import STARTING


def make_accelerator(plan: Plan, run: Path | None) -> Accelerator:
    """Accelerate on the plan's device; TensorBoard where there is a run folder.

    The model does its own casts; only fp16 uses accelerate's gradient scaler.
    """
    accelerator = Accelerator(
        mixed_precision="fp16" if plan.dtype == "fp16" else "no",
        kwargs_handlers=[AutocastKwargs(enabled=False), InitProcessGroupKwargs(timeout=STARTING)],
        cpu=plan.device == "cpu",
        log_with="tensorboard" if run else None,
        project_dir=run,
        dataloader_config=DataLoaderConfiguration(split_batches=False),
    )
    if accelerator.num_processes != plan.processes:
        raise ValueError(
            f"the plan is for {plan.processes} processes, {accelerator.num_processes} were started"
            f"\n    hint: --set processes={accelerator.num_processes}, or leave the launcher out: "
            "lisa-train starts the plan's processes"
        )
    return accelerator
