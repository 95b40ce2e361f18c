"""What FP8 products would change, in one line. No plan has them unless the user sets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advisor.cost.duration import duration_of
from profiles.gpus import WITH_FP8, gpu_by_nvml
from profiles.text import time_text

if TYPE_CHECKING:
    from advisor.advice import Advice
    from profiles.gpus import GpuProfile

WORTH_SAYING = 1.02  # times as long without FP8: less is no alternative


def fp8_text(advice: Advice) -> str:
    """What to set, and the training's time with and without FP8; '' where it gains nothing.

    The setting comes first, because a narrow screen cuts a note's end.
    """
    plan, card, usual = advice.plan, _card_with_fp8(advice), advice.duration
    if plan is None or card is None or usual is None or usual.data is None:
        return ""
    fast = plan.model_copy(update={"products": "fp8"})
    here, then = (duration_of(one, card, usual.data).training_seconds for one in (plan, fast))
    now, then = usual.training_seconds, usual.training_seconds * then / here  # as in a trial, too
    times = time_text(now), time_text(then)
    if now < WORTH_SAYING * then or times[0] == times[1]:
        return ""
    return f"--set products=fp8: about {times[1]} of training, not {times[0]}; it rounds more"


def _card_with_fp8(advice: Advice) -> GpuProfile | None:
    """The card, if it has FP8 and the plan could use it: compiled plans alone were timed."""
    plan, gpu = advice.plan, advice.gpu
    if advice.command is None or plan is None or gpu is None or plan.products == "fp8":
        return None
    able = (gpu.compute_capability or (0, 0)) >= WITH_FP8
    able = able and plan.compile and plan.dtype == "bf16"
    return gpu_by_nvml(gpu.name, gpu.total_bytes) if able else None
