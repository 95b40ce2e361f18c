"""The training step without a GPU: its own code on tensors that have shapes but no memory.

It runs `trainer.model.build` and the parts of `trainer.step` on fake CPU tensors (torch's
FakeTensorMode) in place of the card's. The step is not described a second time; what fake tensors
cannot show is added by name, in `Measurement.assumed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from profiles.compiled import saved_bytes
from profiles.compiled_layers import moves_of
from profiles.garbage import not_collected
from profiles.measurement import Measurement, Timeline
from profiles.plan import Plan
from profiles.sizes import MIB
from trainer.batch import Batch
from trainer.data.samples import padded_length
from trainer.hardware import versions
from trainer.model.build import counting_tokenizer, fill, skeleton
from trainer.model.footprint import SMALLEST_PAGED, component_of
from trainer.model.layers.decoder import Rope, RunLayer, run_layer
from trainer.model.layers.frozen import make_scale_code
from trainer.model.layers.host import host_tensors
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.weights import DrawnShapes, ShapesAlone
from trainer.rehearse.compiled_layers import LayerVisits, compiled_events
from trainer.rehearse.dummy_batch import MadeUp
from trainer.rehearse.fake_tensors import fake_tensors, faked
from trainer.rehearse.gradient_buckets import GradientBuckets
from trainer.rehearse.memory_trace import MemoryTrace, rounded
from trainer.rehearse.repeated_layers import Repeater
from trainer.rehearse.repeated_work import RepeatedEncoder, RepeatedLinears, RepeatedPasses
from trainer.rehearse.step_timeline import components, timeline
from trainer.step import accumulate, clip, make_optimizer, total_of, trained_by, update

# Of each of cuBLAS's two handles (the main thread's and autograd's): 32 MiB on Hopper and later,
# else 8.125 (PyTorch's CUDA notes, CUBLAS_WORKSPACE_CONFIG). Twice 32 were seen on an H100.
CUBLAS_WORKSPACE = {True: 32 * MIB, False: 8320 * 1024}
# Parts of the backward pass after its first, down to the layers.
LAYERS, BELOW = "backward through the layers", "backward below the layers"
PASSES = "forward", "backward"
# The first step allocates the optimizer's state. The pool takes whole segments and may grow by
# another one over the next steps.
STEPS = {"expandable": 2, "whole": 5}


def fake_rehearsal(
    plan: Plan,
    text_tokens: int,
    masks: int,
    compute_capability: tuple[int, int] = (8, 6),
    tell: Callable[[str], None] = lambda phase: None,
    drawn: Callable[[Timeline], None] | None = None,
    answer_tokens: int | None = None,
    by_code: bool = True,
) -> tuple[Measurement, list[tuple[int, int]]]:
    """Bytes of the plan's training step on a card of that compute capability, and their events.

    `text_tokens`, `masks` and `answer_tokens` are those of every sample: give the worst one's. The
    events are (block, bytes), −bytes for a release, from loading to the end of the last step;
    those of compiled layers are their code's if it is known and `by_code`, else plain layers'.
    `tell` is called for every phase that begins, `drawn` with the last step by component. Raises
    Unforeseen, NotAlike, WeightsError.
    """
    workspace = CUBLAS_WORKSPACE[compute_capability >= (9, 0)]
    with not_collected():  # nothing here is in cycles that hold tensors; looking takes 15 %
        seen = watch(plan, (text_tokens, text_tokens), masks, workspace, True, tell, answer_tokens)
    peaks = seen.trace.peaks()
    load = peaks.pop("load")
    # Layers that nothing is learnt through keep nothing, compiled or not.
    saved = compiled_saving(plan, text_tokens) if seen.visits.back else {}
    if saved:
        peaks |= _with_saved(seen.trace.peaks(parts=True), saved)
    moves = moves_of(plan, _length(plan, text_tokens)) if by_code else {}
    events, timed = seen.trace.events, 0
    if moves:
        events, timed = compiled_events(seen.trace, seen.visits.back, moves)
    step = timeline(plan, seen.trace, saved)
    if drawn is not None:
        drawn(step)
    measurement = counted(
        plan, text_tokens, masks, answer_tokens=answer_tokens,
        load_peak_bytes=load, peak_allocated_bytes=max(peaks.values()), phases=peaks,
        # Compiled layers may peak in another phase than the plain layers that were traced.
        live_at_peak=step.live_at_peak() if saved else components(seen.trace),
        host_bytes=seen.host + plan.local_processes * timed,
        assumed=_assumed(seen, workspace, compute_capability, saved),
    )  # fmt: skip
    return measurement, events


def counted(plan: Plan, text_tokens: int, masks: int, **found: Any) -> Measurement:
    """What fake tensors show of a plan: there is no card, and so no verdict."""
    return Measurement(
        plan=plan, verdict="UNKNOWN", gpu="none: fake tensors", gpu_bytes=0,
        text_tokens=(text_tokens, text_tokens), masks=masks, versions=versions(),
        random_weights=True, **found,
    )  # fmt: skip


def _assumed(
    seen: Watched, workspace: int, compute_capability: tuple[int, int], saved: Mapping[str, int]
) -> tuple[str, ...]:
    """What was added to the counted bytes by rule."""
    major, minor = compute_capability
    found = [f"cuBLAS workspaces of twice {workspace / MIB:.1f} MiB (compute capability "
             f"{major}.{minor}) and 1 MiB"]  # fmt: skip
    if seen.paged:
        found.append(f"{seen.paged / MIB:.1f} MiB of paged optimizer state are off the card")
    if saved:
        less = saved[LAYERS] / MIB
        more = f"{abs(less):.0f} MiB {'less' if less >= 0 else 'more'}"
        found.append(f"compiled layers take {more} (a rule from measured rows)")
    return tuple(found)


def _with_saved(peaks: Mapping[str, int], saved: Mapping[str, int]) -> dict[str, int]:
    """The peaks of forward and backward pass, from those of their parts, where layers save."""
    less = {part: peaks.get(part, 0) - saved.get(part, 0) for part in (*PASSES, LAYERS, BELOW)}
    return {
        "forward": less["forward"],
        "backward": max(less["backward"], less[LAYERS], less[BELOW]),
    }


def compiled_saving(plan: Plan, text_tokens: int) -> dict[str, int]:
    """Bytes that compiled layers save compared with plain ones, by part; negative for more."""
    length = _length(plan, text_tokens)
    kept, backward = (plan.micro_batch * length * saved for saved in saved_bytes(plan))
    return {"forward": kept, "backward": kept, LAYERS: backward}


def _length(plan: Plan, text_tokens: int) -> int:
    """Positions of a row in a micro-batch of the plan."""
    return padded_length(plan.profile.most_image_tokens + text_tokens, plan)


@dataclass(frozen=True)
class Watched:
    """The events of a run; bytes of paged optimizer state, and of tensors in host memory."""

    trace: MemoryTrace
    visits: LayerVisits  # of layers that are to be compiled
    paged: int
    host: int


def watch(
    plan: Plan,
    text_tokens: tuple[int, int],
    masks: int,
    workspace: int,
    extend: bool = True,
    tell: Callable[[str], None] = lambda phase: None,
    answer_tokens: int | None = None,
) -> Watched:
    """Load the model, evaluate and train some steps on fake tensors, as one process of the plan's.

    With `extend`, layers alike are watched once (`trainer.rehearse.repeated_layers`), and so are a
    step's passes (`trainer.rehearse.repeated_work`).
    """
    tokenizer = counting_tokenizer(plan)
    samples = MadeUp(plan, tokenizer, text_tokens, masks, answer_tokens, values=False).step()
    # Paged state is counted apart, and compiled layers run as plain ones: both need a GPU.
    shown = plan.override(["optimizer=adamw", "compile=false"])
    trace = MemoryTrace(workspace, tell)
    once = RepeatedLinears(trace) if extend and plan.products == "dtype" else None
    model = skeleton(plan.profile, tokenizer)
    mode = _load(model, shown, tokenizer, trace, once)
    with fake_tensors(mode), trace:
        batches = [faked(batch, plan, mode) for batch in samples]
    trace.leave_out(host_tensors(model))
    for name, tensor in model.on_card():
        trace.hold([tensor], component_of(model, name, tensor))
    optimizer = make_optimizer(model, shown)  # an 8-bit one makes its code out of real numbers
    buckets = GradientBuckets(trace, model, len(batches)) if plan.processes > 1 else None
    if extend:
        _repeat_layers(model, trace, plan)
    visits = LayerVisits(trace)
    if plan.compile:
        model.runs = [visits.mark(run, n < plan.checkpointed_layers)
                      for n, run in enumerate(model.runs)]  # fmt: skip
    _divide_backward(model, trace)
    model.register_forward_pre_hook(lambda *_: trace.begin("forward"))
    model.register_forward_hook(lambda *_: trace.begin("backward"))
    with fake_tensors(mode), trace:
        trace.begin("evaluation")
        model.eval().predict(batches[0].to(torch.device("cpu")))
        model.train()
        passes = RepeatedPasses(trace, model, visits) if extend else None
        paged = _train(model, batches, optimizer, trace, plan, buckets, passes)
    trace.close()
    host = sum(t.numel() * t.element_size() for t in host_tensors(model))
    return Watched(trace, visits, paged, host)


def _train(
    model: SegmentationModel, batches: Sequence[Batch], optimizer: torch.optim.Optimizer,
    trace: MemoryTrace, plan: Plan, buckets: GradientBuckets | None,
    passes: RepeatedPasses | None,
) -> int:  # fmt: skip
    """Take the plan's steps under the trace; bytes of paged optimizer state."""
    accelerator, trained, paged = Accelerator(cpu=True), trained_by(optimizer), 0

    def run() -> None:
        accumulate(model, batches, total_of(batches, accelerator), accelerator)

    for step in range(STEPS[plan.segments]):
        if buckets is not None and step == 1:
            buckets.rebuild()
        if passes is not None and (buckets is None or step > 0):  # buckets settle in the first
            passes(run)
        else:
            run()
        if buckets is None:
            trace.hold((p.grad for p in trained if p.grad is not None), "gradients")
        trace.begin("clipping")
        clip(optimizer, plan, accelerator)
        trace.begin("optimizer")
        update(optimizer)
        paged = _hold_state(trace, optimizer, plan)
    return paged


def _load(
    model: SegmentationModel, plan: Plan, tokenizer: ConversationTokenizer, trace: MemoryTrace,
    once: RepeatedLinears | None,
) -> FakeTensorMode:  # fmt: skip
    """Fill the model with fake weights under the trace; the mode that made them."""
    make_scale_code()
    trace.begin("load")
    with fake_tensors() as mode, trace:
        cpu = torch.device("cpu")
        source = DrawnShapes("cpu") if plan.weights == "random" else ShapesAlone("cpu")
        fill(model, plan, tokenizer, cpu, source, linear_of=once).train()
    return mode


def _repeat_layers(model: SegmentationModel, trace: MemoryTrace, plan: Plan) -> None:
    """Have layers alike, and each encoder, watched once."""
    kinds = ["checkpointed" if n < plan.checkpointed_layers else "plain"
             for n in range(len(model.runs))]  # fmt: skip
    repeater = Repeater(trace, model.decoder_layers, kinds)
    model.runs = [repeater.wrap(run) for run in model.runs]
    model.run_evaluating = repeater.wrap(run_layer)
    model.features = RepeatedEncoder(trace, model)  # type: ignore[method-assign]


def _divide_backward(model: SegmentationModel, trace: MemoryTrace) -> None:
    """Tell the trace when the backward pass reaches the decoder layers, and when it leaves them."""

    def reached(gradient: Tensor, part: str) -> None:
        trace.divide(part)

    def marked(run: RunLayer, first: bool, last: bool) -> RunLayer:
        def marking(layer: nn.Module, hidden: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
            if first and hidden.requires_grad:
                hidden.register_hook(partial(reached, part=BELOW))
            output = run(layer, hidden, rope, mask)
            if last and output.requires_grad:
                output.register_hook(partial(reached, part=LAYERS))
            return output

        return marking

    top = len(model.runs) - 1
    for place in {0, top}:
        model.runs[place] = marked(model.runs[place], place == 0, place == top)


def _hold_state(trace: MemoryTrace, optimizer: torch.optim.Optimizer, plan: Plan) -> int:
    """Name the optimizer's state; leave out what is paged, and return its bytes."""
    states = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    trace.hold(states, "optimizer state")
    if plan.optimizer != "paged_adamw":
        return 0
    large = [s for s in states if s.numel() >= SMALLEST_PAGED]
    trace.leave_out(large)
    return sum(rounded(s.numel() * s.element_size()) for s in large)
