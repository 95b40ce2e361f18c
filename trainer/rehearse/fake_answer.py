"""Answering a question without a GPU, on the fake tensors that `fake` trains with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from profiles.families import MASK
from profiles.measurement import Measurement
from profiles.plan import Plan
from profiles.sizes import MIB
from trainer.model.answering import Answering
from trainer.model.build import TORCH_DTYPES, FrozenEncoder, counting_tokenizer, fill, skeleton
from trainer.model.layers.frozen import make_scale_code
from trainer.model.layers.host import host_tensors
from trainer.model.weights import ShapesAlone
from trainer.rehearse.dummy_batch import MadeUp, numbers_of
from trainer.rehearse.fake import CUBLAS_WORKSPACE, counted
from trainer.rehearse.fake_tensors import fake_tensors, faked
from trainer.rehearse.memory_trace import MemoryTrace
from trainer.rehearse.step_timeline import ENCODER, components

# All is done on a stream of its own (`own_stream`), but these operators of bitsandbytes are not.
DEFAULT_STREAM, GRAPH = 1, 2
ON_DEFAULT_STREAM = "quantize_4bit", "quantize_blockwise"


def fake_answer(
    plan: Plan,
    text_tokens: int,
    compute_capability: tuple[int, int] = (8, 6),
    tell: Callable[[str], None] = lambda phase: None,
) -> tuple[Measurement, list[tuple[int, int]]]:
    """Bytes of answering one question of `text_tokens`, as `fake_rehearsal` has a training step's.

    The encoders come first, each alone; then the model loads, reads the question, and answers.
    """
    workspace = CUBLAS_WORKSPACE[compute_capability >= (9, 0)]
    tokenizer = counting_tokenizer(plan)
    one = plan.model_copy(update={"micro_batch": 1})
    batch = MadeUp(one, tokenizer, (text_tokens, text_tokens), 1, values=False).batch()
    make_scale_code()
    cpu, source = torch.device("cpu"), ShapesAlone("cpu")
    trace = MemoryTrace(workspace, tell)
    trace.result_streams = {getattr(torch.ops.bitsandbytes, name): DEFAULT_STREAM
                            for name in ON_DEFAULT_STREAM}  # fmt: skip
    shells = {encoder: skeleton(plan.profile, tokenizer) for encoder in plan.cached_encoders}
    model = skeleton(plan.profile, tokenizer)
    numbers = {name: numbers_of(facts, 1) for name, facts in plan.profile.encoders.items()}
    with fake_tensors() as mode, trace:
        for encoder in plan.cached_encoders:
            trace.begin(f"{encoder}{ENCODER}")
            facts = plan.profile.encoders[encoder]
            part = FrozenEncoder(shells.pop(encoder), plan, encoder, cpu, source)
            shown = {name: torch.empty(shape) for name, shape in facts.pixels.items()}
            pixels: dict[str, Tensor] = {n: mode.from_tensor(t) for n, t in shown.items()}
            part(pixels | numbers[encoder])
            del part, pixels  # but not `shown`, which stands for what else stays: docs/decisions.md
            trace.empty()
        trace.begin("load")
        fill(model, plan, tokenizer, cpu, source, TORCH_DTYPES[plan.dtype]).eval()
        batch = faked(batch, plan, mode)
    trace.leave_out(host_tensors(model))
    trace.hold((tensor for _, tensor in model.on_card()), "frozen weights")
    with fake_tensors(mode), trace, torch.no_grad():
        trace.begin("answer")
        sent = batch.to(cpu)
        most = sent.input_ids.shape[1] + plan.tokens.max_new_tokens + 1
        said = Answering(model, most).greedy(sent, [0])
        # The first token takes the whole question, every later one the same. The third is recorded.
        for _, state in islice(said, 2):
            model.masks_of(model.prompts_of(state), model.features(MASK, sent))
        if model.host_layers is None:
            with trace.apart(GRAPH):
                next(said)
    trace.close()
    peaks = trace.peaks()
    load = peaks.pop("load")
    measurement = counted(
        plan, text_tokens, 1, load_peak_bytes=load, phases=peaks,
        peak_allocated_bytes=max(load, *peaks.values()), live_at_peak=components(trace),
        host_bytes=sum(t.numel() * t.element_size() for t in host_tensors(model)),
        assumed=(f"cuBLAS workspace of {workspace / MIB:.1f} MiB and 1 MiB",),
    )  # fmt: skip
    return measurement, trace.events
