"""The training step run under a Plan without training: a child process that prints a Measurement.

The step is the one that trains (`trainer.step`), on made-up samples of a given length. A process
of its own is needed: an out-of-memory step leaves its process in an unknown state. With --fake it
needs no GPU: the step runs on tensors that have shapes and no memory (`trainer.rehearse.fake`).
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from profiles.environment import own_card
from profiles.gpus import gpu_by_nvml
from profiles.measurement import Measurement
from profiles.plan import Plan
from profiles.streams import tell

WARM_UP = 3  # steps: the first allocates the optimizer's state, a compiled one takes two


class Rehearsal:
    """A model under a Plan and made-up batches; torch is imported with the first one."""

    def __init__(
        self,
        plan: Plan,
        text_tokens: tuple[int, int],
        masks: int,
        answer_tokens: int | None = None,
    ) -> None:
        from trainer.model.build import build, read_tokenizer
        from trainer.parallel.accelerator import between_processes, make_accelerator
        from trainer.parallel.ranks import Ranks
        from trainer.rehearse.dummy_batch import MadeUp
        from trainer.run.host_memory import host_memory
        from trainer.step import make_optimizer

        self.plan, self.text_tokens = plan, text_tokens
        self.accelerator = make_accelerator(plan, None)
        self.tokenizer = read_tokenizer(plan)
        memory = host_memory(plan, Ranks.here())
        model = build(plan, self.tokenizer, self.accelerator.device, memory=memory)
        optimizer = make_optimizer(model, plan)
        self.model, self.optimizer = between_processes(self.accelerator, model, optimizer)
        self.model.train()
        self.samples = MadeUp(plan, self.tokenizer, text_tokens, masks, answer_tokens)

    def evaluate(self) -> None:
        """Masks of one micro-batch, as an evaluation predicts them."""
        model = self.accelerator.unwrap_model(self.model).eval()
        model.predict(self.samples.batch().to(self.accelerator.device))
        model.train()

    def save(self) -> None:
        """Write a checkpoint, as training does, and delete it."""
        import tempfile

        from trainer.run import checkpoint

        model = self.accelerator.unwrap_model(self.model)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "trial", model, self.plan, {})

    def batches(self) -> list[Any]:
        """The micro-batches of one step, in pinned memory as data workers leave them."""
        return [batch.pin_memory() for batch in self.samples.step()]

    def step(self, batches: list[Any] | None = None) -> float:
        """One optimizer step; its loss."""
        from trainer.step import training_step

        batches = batches or self.batches()
        result = training_step(self.model, batches, self.optimizer, self.plan, self.accelerator)
        return result.loss


class PhasePeaks:
    """The most bytes of tensors in each phase, and of the pool over all, on this process's GPU."""

    def __init__(self) -> None:
        self.allocated: dict[str, int] = {}
        self.reserved = 0
        self.phase = "load"

    def begin(self, phase: str) -> None:
        """Close the phase so far; what follows belongs to `phase`."""
        import torch

        peak = torch.cuda.max_memory_allocated()
        self.allocated[self.phase] = max(peak, self.allocated.get(self.phase, 0))
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        self.phase = phase

    def watch(self, rehearsal: Rehearsal) -> None:
        """Begin a phase wherever the step does; clipping counts to the backward pass."""
        model = rehearsal.accelerator.unwrap_model(rehearsal.model)
        model.register_forward_pre_hook(lambda *_: self.begin("forward"))
        model.register_forward_hook(lambda *_: self.begin("backward"))
        optimizer = rehearsal.optimizer.optimizer
        optimizer.register_step_pre_hook(lambda *_: self.begin("optimizer"))


def model_flops(plan: Plan, tokens: int) -> float:
    """Products of one sample of `tokens`: forward and input gradients of the decoder's linears,
    2 operations each, and attention's two products; nothing recomputed, no encoder."""
    decoder = plan.profile.decoder
    linears, attention = decoder.linear_flops(tokens), decoder.attention_flops(tokens)
    return decoder.layers * (2 * linears + 3 * attention)


def rehearse(
    plan: Plan,
    cap_bytes: int | None,
    text_tokens: tuple[int, int],
    masks: int,
    steps: int,
    save: bool = False,
    answer_tokens: int | None = None,
) -> Measurement:
    """Build the model, warm up, time `steps` steps on this process's GPU.

    With `save` a checkpoint is also written, and deleted. The verdict is SPILLS if the step took
    more than was free and did not fail: then the driver has moved a part to host memory.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("a real rehearsal needs a CUDA device")
    torch.cuda.set_device(own_card())
    free = torch.cuda.mem_get_info()[0]
    facts = _circumstances(plan, cap_bytes) | {
        "text_tokens": text_tokens, "masks": masks, "answer_tokens": answer_tokens,
    }  # fmt: skip
    if cap_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(cap_bytes / facts["gpu_bytes"])
    peaks = PhasePeaks()
    try:
        started = time.monotonic()
        rehearsal = Rehearsal(plan, text_tokens, masks, answer_tokens)
        torch.cuda.synchronize()
        facts["load_seconds"] = round(time.monotonic() - started, 2)
        peaks.watch(rehearsal)
        peaks.begin("evaluation")  # a run begins with one
        rehearsal.evaluate()
        peaks.begin("forward")
        facts["first_loss"] = rehearsal.step()
        for _ in range(WARM_UP - 1):
            rehearsal.step()
        facts["static_bytes"] = torch.cuda.memory_allocated()
        # Without a pause, as in training: a card that rests between steps computes faster.
        same = rehearsal.batches() if text_tokens[0] == text_tokens[1] else None
        seconds = [_timed(rehearsal, same or rehearsal.batches()) for _ in range(steps)]
        facts["last_loss"] = rehearsal.step(same)
        facts |= _speed(rehearsal, statistics.median(seconds), facts["gpu"]) | {"steps": steps}
        if save:
            rehearsal.save()
        verdict = "FITS"
    except torch.OutOfMemoryError as error:
        verdict, facts["error"] = "OOM", f"{peaks.phase}: {str(error).splitlines()[0]}"
    peaks.begin("done")
    if verdict == "FITS" and peaks.reserved > free:
        verdict = "SPILLS"
        facts["error"] = f"took {peaks.reserved} bytes where {free} were free"
    return Measurement(verdict=verdict, **facts, **_taken(peaks))


def _circumstances(plan: Plan, cap_bytes: int | None) -> dict[str, Any]:
    """What is measured, on which card and with which versions."""
    import torch

    from trainer.hardware import versions

    properties = torch.cuda.get_device_properties(own_card())
    return {
        "plan": plan,
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "cap_bytes": cap_bytes,
        "versions": versions() | {"cuda": str(torch.version.cuda), "driver": _driver()},
        "random_weights": plan.weights == "random",
    }


def _taken(peaks: PhasePeaks) -> dict[str, Any]:
    """What the phases took at their peaks, and the process on the card and in host memory."""
    phases = {name: peak for name, peak in peaks.allocated.items() if name != "load"}
    return {
        "load_peak_bytes": peaks.allocated.get("load"),
        "phases": phases,
        "peak_allocated_bytes": max(phases.values(), default=None),
        "peak_reserved_bytes": peaks.reserved,
        "process_bytes": _nvml_used(),
        "host_bytes": _peak_resident(),
    }


def tell_phase(phase: str) -> None:
    tell(f"phase: {phase}")  # whoever reads of a crash learns where


def _timed(rehearsal: Rehearsal, batches: list[Any]) -> float:
    import torch

    rehearsal.accelerator.wait_for_everyone()  # else a fast process's step holds another's batches
    torch.cuda.synchronize()
    started = time.perf_counter()
    rehearsal.step(batches)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _speed(rehearsal: Rehearsal, seconds: float, gpu: str) -> dict[str, Any]:
    plan, text = rehearsal.plan, rehearsal.text_tokens
    rows = plan.micro_batch * min(2, plan.accumulation)  # of this process
    questions = rows * plan.processes * plan.questions_per_picture
    found: dict[str, Any] = {
        "step_seconds": round(seconds, 4),
        "samples_per_second": round(questions / seconds, 3),
    }
    card = gpu_by_nvml(gpu, None)
    if card and card.bf16_tflops and text[0] == text[1] and plan.dtype == "bf16":
        rate = rows * model_flops(plan, plan.profile.most_image_tokens + text[0]) / seconds
        found["model_flops_utilisation"] = round(rate / card.rate_flops(plan.dtype), 4)
    return found


def _nvml_used() -> int | None:
    """This process's bytes on its GPU by NVML; None if it does not report them."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(own_card())
        found = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(card)}
        return found.get(os.getpid())
    except Exception:  # whatever NVML's trouble is, the rehearsal's own counts stand
        return None


def _driver() -> str:
    try:
        import pynvml

        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:
        return "unknown"


def _peak_resident() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * (1 if sys.platform == "darwin" else 1024)
