"""Of several processes: what DDP takes by rule is what DDP itself takes."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from profiles.measurement import Measurement
from tests.conftest import tiny_plan
from tests.group import together
from trainer.model.build import counting_tokenizer
from trainer.model.footprint import needed_bytes
from trainer.parallel.trained_only import leave_out_frozen
from trainer.rehearse.fake import fake_rehearsal
from trainer.rehearse.gradient_buckets import LABEL, GradientBuckets
from trainer.rehearse.memory_trace import SEEN_THROUGH, MemoryTrace

SIZES = [1500, 900, 700, 1100, 300, 1500]  # tensors of up to 6 MiB, and their sum below 25 MiB
LARGE = 500_000  # bytes: a bucket's tensors, no activation


def model() -> nn.Module:
    pairs = zip([*SIZES[1:], 800], SIZES, strict=True)
    layers = nn.Sequential(*[nn.Linear(inputs, outputs) for outputs, inputs in pairs])
    layers[1].requires_grad_(False)
    return layers


def step(wrapped: nn.Module, trace: MemoryTrace, passes: int) -> None:
    """Micro-batches, of which the last is exchanged."""
    for last in (number == passes - 1 for number in range(passes)):
        quiet = isinstance(wrapped, DistributedDataParallel) and not last
        with wrapped.no_sync() if quiet else nullcontext():
            trace.begin("forward")
            loss = wrapped(torch.randn(2, SIZES[0])).sum()
            trace.begin("backward")
            loss.backward()
            del loss
    trace.begin("optimizer")
    wrapped.zero_grad(set_to_none=True)


def by_itself(trace: MemoryTrace, passes: int) -> object:
    SEEN_THROUGH.add("c10d")  # in a process of its own: exchanges
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    alone = model()
    leave_out_frozen(alone)
    wrapped = DistributedDataParallel(alone, gradient_as_bucket_view=True)
    for _ in range(3):
        step(wrapped, trace, passes)
    dist.destroy_process_group()
    return wrapped


def by_rule(trace: MemoryTrace, passes: int) -> object:
    alone = model()
    buckets = GradientBuckets(trace, alone, passes)
    for number in range(3):
        if number == 1:
            buckets.rebuild()
        step(alone, trace, passes)
    return alone, buckets


def alike(passes: int) -> None:
    traces = MemoryTrace(), MemoryTrace()
    for trace, run in zip(traces, (by_itself, by_rule), strict=True):
        with trace:
            trace.begin("start")
            _ = run(trace, passes)  # not freed before the end
            trace.close()
    theirs, ours = (trace.peaks() for trace in traces)
    # Beside the buckets DDP has some tensors of a few bytes.
    for phase in ("forward", "backward", "optimizer"):
        assert 0 <= theirs[phase] - ours[phase] <= 8 * 512, phase
    blocks = [Counter(size for _, size in trace.events if abs(size) > LARGE) for trace in traces]
    flat = blocks[0] - blocks[1]  # what the first process sends at the start
    assert blocks[1] <= blocks[0] and len(flat) == 2 and sum(flat.elements()) == 0


@pytest.mark.parametrize("passes", [1, 2])
def test_the_rule_is_what_ddp_does(passes: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert together(1, partial(alike, passes), log) == [0], log.read_text()


SHAPE = {"cached_encoders": ["mask", "vision"], "device": "cuda", "micro_batch": 2,
         "quantization": "nf4"}  # fmt: skip


@pytest.fixture(scope="module")
def one() -> Measurement:
    """A process alone."""
    return fake_rehearsal(tiny_plan(**SHAPE, effective_batch=4), 64, 1)[0]


@pytest.mark.parametrize("processes", [2, 3])
def test_a_rank_takes_its_gradients_twice_until_they_are_exchanged(
    processes: int, one: Measurement
) -> None:
    """All else is as in a process alone with as many samples."""
    rank = tiny_plan(**SHAPE, effective_batch=4 * processes, processes=processes)
    of_many = fake_rehearsal(rank, 64, 1)[0]
    gradients = needed_bytes(rank, counting_tokenizer(rank))["gradients"]
    assert of_many.live_at_peak[LABEL] == pytest.approx(gradients, abs=512)
    more = {phase: size - one.phases[phase] for phase, size in of_many.phases.items()}
    assert more.pop("clipping") == pytest.approx(0, abs=8192)
    # While the next batch is copied, the buckets are there; a process alone has no gradients then.
    assert 0 <= more.pop("optimizer") < 0.5 * gradients
    assert more == pytest.approx(dict.fromkeys(more, gradients), abs=4096)


def test_after_a_single_pass_gradients_are_in_the_buckets_alone() -> None:
    """Of layers that are watched once too, whose adapters have a large state here."""
    shape = {"cached_encoders": ["mask", "vision"], "device": "cuda", "micro_batch": 2,
             "quantization": "nf4", "lora": {"rank": 32, "targets": "all-linear"}}  # fmt: skip
    plans = [tiny_plan(**shape, effective_batch=2 * n, accumulation=1, processes=n) for n in (1, 2)]
    one, rank = (fake_rehearsal(plan, 64, 1)[0] for plan in plans)
    assert rank.phases["clipping"] == pytest.approx(one.phases["clipping"], abs=8192)
    assert rank.live_at_peak["optimizer state"] == one.live_at_peak["optimizer state"]
    assert LABEL in rank.live_at_peak and "gradients" not in rank.live_at_peak
