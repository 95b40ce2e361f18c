"""The training step without a GPU: its own code on tensors that have shapes and no memory.

What runs is `trainer.model.build` and the parts of `trainer.step`, on fake CPU tensors (torch's
FakeTensorMode) that stand for the card's. Nothing of the step is described a second time; what fake
tensors cannot show is added by name, in `Measurement.assumed`.
"""

from __future__ import annotations

import warnings

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from profiles.measurement import Measurement
from profiles.plan import Plan
from trainer.data.made_up import MadeUp
from trainer.loop import versions
from trainer.model.build import build, read_tokenizer
from trainer.model.footprint import SMALLEST_PAGED
from trainer.model.frozen import make_scale_code
from trainer.model.host import host_tensors
from trainer.model.lisa import Batch
from trainer.model.tokens import LisaTokenizer
from trainer.model.weights import ShapesAlone
from trainer.step import accumulate, clip, make_optimizer, total_of, update
from trainer.trace import MemoryTrace, rounded

MIB = 2**20
# Two handles, one of the main thread and one of autograd's: 32 MiB each on Hopper and later, else
# 8.125 (PyTorch's CUDA notes, CUBLAS_WORKSPACE_CONFIG). 64 MiB were seen on an H100.
CUBLAS_WORKSPACES = {True: 2 * 32 * MIB, False: 2 * 8320 * 1024}


def fake_rehearsal(
    plan: Plan, text_tokens: int, masks: int, compute_capability: tuple[int, int] = (8, 6)
) -> Measurement:
    """Bytes of the plan's training step on a card of that compute capability.

    `text_tokens` and `masks` are those of every sample: give the worst one's. Raises WeightsError.
    """
    tokenizer = read_tokenizer(plan)
    samples = MadeUp(plan, tokenizer, (text_tokens, text_tokens), masks).step()
    trace, paged = _trace(plan, tokenizer, samples)
    workspaces = CUBLAS_WORKSPACES[compute_capability >= (9, 0)]
    assumed = [f"cuBLAS workspaces {workspaces / MIB:.1f} MiB (compute capability "
               f"{compute_capability[0]}.{compute_capability[1]})"]  # fmt: skip
    if paged:
        assumed.append(f"{paged / MIB:.1f} MiB of paged optimizer state are off the card")
    if plan.compile:
        assumed.append("compiled layers counted as plain ones, which keep more")
    phases = {name: size + workspaces - paged for name, size in trace.peaks().items()}
    live = trace.live_at_peak() | {"cuBLAS workspaces": workspaces}
    if paged:
        live["optimizer state"] -= paged
    return Measurement(
        plan=plan,
        verdict="UNKNOWN",
        gpu="none: fake tensors",
        gpu_bytes=0,
        text_tokens=(text_tokens, text_tokens),
        masks=masks,
        peak_allocated_bytes=max(phases.values()),
        phases=phases,
        live_at_peak=live,
        assumed=tuple(assumed),
        versions=versions(),
        random_weights=True,
    )


def _trace(
    plan: Plan, tokenizer: LisaTokenizer, samples: list[Batch]
) -> tuple[MemoryTrace, int]:
    """The events of an evaluation and a step with the optimizer's state there; paged bytes."""
    make_scale_code()
    # Paged state is counted apart, and compiled layers run as plain ones: both need a GPU.
    shown = plan.override(["optimizer=adamw", "compile=false"])
    accelerator = Accelerator(cpu=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trace = MemoryTrace()
    with warnings.catch_warnings(), mode:
        warnings.simplefilter("ignore")
        model = build(shown, tokenizer, torch.device("cpu"), ShapesAlone("cpu")).train()
    optimizer = make_optimizer(model, shown)  # an 8-bit one makes its code out of real numbers
    with warnings.catch_warnings(), mode:
        warnings.simplefilter("ignore")
        batches = [batch.each(mode.from_tensor) for batch in samples]
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        update(optimizer)  # makes the optimizer's state
        states = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        for name, tensor in model.on_card():
            trace.hold([tensor], _component(name, tensor))
        trace.hold(states, "optimizer state")
        trace.leave_out(host_tensors(model))
        model.register_forward_pre_hook(lambda *_: trace.begin("forward"))
        model.register_forward_hook(lambda *_: trace.begin("backward"))
        with trace:
            trace.begin("evaluation")
            model.eval().predict(_copied(batches[0]))
            model.train()
            totals = total_of(batches, accelerator)
            accumulate(model, [_copied(batch) for batch in batches], totals, accelerator)
            trace.hold((p.grad for p in trained if p.grad is not None), "gradients")
            trace.begin("clipping")
            clip(model, plan, accelerator)
            trace.begin("optimizer")
            update(optimizer)
    large = [s for s in states if s.numel() >= SMALLEST_PAGED]
    paged = sum(rounded(s.numel() * s.element_size()) for s in large)
    return trace, paged if plan.optimizer == "paged_adamw" else 0


def _copied(batch: Batch) -> Batch:
    """A batch as it arrives on the card: memory of its own."""
    return batch.each(Tensor.clone)


def _component(name: str, tensor: Tensor) -> str:
    """What a tensor that stays on the card is part of."""
    if tensor.requires_grad:
        return "trained tensors"
    encoder = "vision_tower" in name or "vision_encoder" in name
    return "encoders" if encoder else "frozen weights"
