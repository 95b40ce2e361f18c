"""What several processes exchange: bytes and seconds."""

from __future__ import annotations

import pytest

from profiles.exchange import (
    Link,
    bucket_bytes,
    exchange,
    exchange_seconds,
    gradient_bytes,
    link_of,
    nccl_bytes,
    step_exchange_seconds,
)
from profiles.plan import Plan

FAST = Link(gb_s=10, round_seconds=0, source="a test")


def plan(**settings: object) -> Plan:
    return Plan.parse({"model": "7b", "device": "cuda", "effective_batch": 16} | settings)


def test_a_process_alone_exchanges_nothing() -> None:
    alone = plan()
    assert (bucket_bytes(alone), nccl_bytes(alone), step_exchange_seconds(alone)) == (0, 0, 0.0)
    assert nccl_bytes(plan(device="cpu", processes=2)) == 0, "gloo takes none of a card"


def test_two_send_their_gradients_once_and_many_twice() -> None:
    assert exchange_seconds(10**9, 2, FAST) == pytest.approx(0.1)
    assert exchange_seconds(10**9, 1024, FAST) == pytest.approx(0.2, rel=0.01)
    # As many rounds as the tree of processes is deep, there and back, for each bucket of 25 MiB.
    slow = Link(gb_s=1e9, round_seconds=1, source="a test")
    assert exchange_seconds(26 * 2**20, 8, slow) == pytest.approx(2 * 3 * 2)


def test_machines_are_as_slow_as_what_joins_them() -> None:
    one, two = plan(processes=4), plan(processes=4, nodes=2)
    assert link_of(1) == exchange().within and link_of(2) == exchange().between
    wait = exchange().wait_seconds
    ratio = exchange().within.gb_s / exchange().between.gb_s
    sending = [step_exchange_seconds(each) - wait for each in (one, two)]
    assert sending[0] > 0 and sending[1] > 0.9 * ratio * sending[0]
    assert gradient_bytes(one) == pytest.approx(97.5 * 2**20, rel=0.01)
