"""What several processes take to exchange their gradients: bytes on each card, and seconds.

Data-parallel processes hold the same trained tensors. After the last forward pass of a step they
add their gradients up, in flat buckets that torch's DDP keeps beside them
(`trainer/rehearse/gradient_buckets.py` counts the same in a forecast).
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from math import ceil, log2
from pathlib import Path
from typing import NamedTuple

from profiles.families import ModelProfile
from profiles.plan import Plan
from profiles.settings import Lora, TrainedPart
from profiles.sizes import MIB

EXCHANGE_FILE = Path(__file__).with_name("exchange.json")
FP32_BYTES = 4
BUCKET_BYTES = 25 * MIB  # DDP's own size


class Link(NamedTuple):
    """What gradients pass through: a rate, and seconds of each round of messages."""

    gb_s: float  # 1e9 bytes a second, sent by each process while it receives as many
    round_seconds: float
    source: str


class Exchange(NamedTuple):
    """The shipped figures: NCCL's and the wait by benchmarks/several_cards.py from timed rows."""

    nccl_bytes: int  # of each process, beside torch's pool
    nccl_source: str
    wait_seconds: float  # of a step, for the slowest process
    within: Link  # of one machine
    between: Link  # machines


@cache
def exchange() -> Exchange:
    """The shipped figures."""
    read = json.loads(EXCHANGE_FILE.read_text(encoding="utf-8"))
    links = {name: Link(**read[name]) for name in ("within", "between")}
    return Exchange(**(read | links))


def trained_values(plan: Plan) -> int:
    """Values that the plan trains."""
    return _trained_values(plan.profile, plan.lora, plan.train)


@lru_cache(256)
def _trained_values(
    profile: ModelProfile, lora: Lora | None, train: tuple[TrainedPart, ...]
) -> int:
    adapters = profile.decoder.adapter_values(lora) if lora is not None else 0
    return adapters + sum(map(profile.part_values, train))


def gradient_bytes(plan: Plan) -> int:
    """Bytes of the gradients, which each process sends and receives about twice a step."""
    return FP32_BYTES * trained_values(plan)


def bucket_bytes(plan: Plan) -> int:
    """Bytes of torch's pool that the exchange takes beside the gradients.

    None after a single pass: there the buckets are the gradients, by
    `trainer/parallel/accelerator.py`.
    """
    return gradient_bytes(plan) if plan.processes > 1 and plan.accumulation > 1 else 0


def rebuilt_bytes(plan: Plan) -> int:
    """Bytes that the pool may grow by when DDP makes new buckets after the first step.

    One of the new buckets may not fit where the first ones were.
    """
    return min(gradient_bytes(plan), BUCKET_BYTES) if plan.processes > 1 else 0


def nccl_bytes(plan: Plan) -> int:
    """What NCCL takes on each card, beside torch's pool; nothing for a process that is alone."""
    return exchange().nccl_bytes if plan.processes > 1 and plan.device == "cuda" else 0


def link_of(nodes: int) -> Link:
    """The slowest link that gradients pass through."""
    return exchange().within if nodes == 1 else exchange().between


def exchange_seconds(size: int, processes: int, link: Link) -> float:
    """Seconds until all processes have the sum of gradients of `size` bytes.

    An all-reduce sends 2 (N - 1) / N times its bytes (Patarasuk and Yuan 2009, doi:10.1016/
    j.jpdc.2008.09.002). Each bucket takes 2 log2 N rounds at least, as in NCCL's trees. No
    overlap with the backward pass is assumed.
    """
    if processes == 1:
        return 0.0
    sent = 2 * (processes - 1) / processes * size
    rounds = 2 * ceil(log2(processes)) * ceil(size / BUCKET_BYTES)
    return sent / (link.gb_s * 1e9) + rounds * link.round_seconds


def step_exchange_seconds(plan: Plan) -> float:
    """Seconds for which the processes of a plan wait and exchange gradients, in each step."""
    if plan.processes == 1:
        return 0.0
    sending = exchange_seconds(gradient_bytes(plan), plan.processes, link_of(plan.nodes))
    return exchange().wait_seconds + sending
