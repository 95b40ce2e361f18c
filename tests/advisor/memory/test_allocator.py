"""The replayed allocator: properties that any trace must have, and recordings of the real one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.memory.allocator import CachingAllocator, PoolExhausted, replay
from profiles.pool_events import EMPTY, on_stream
from profiles.sizes import MIB

SNAPSHOTS = Path(__file__).parent / "snapshots"  # benchmarks/snapshots.py, on one H100
# Whole segments lie where the driver puts them, and of two blocks of one size the lower is taken:
# the one recording in which that mattered may differ by as much.
TIES = {"7b": 0.001}


def recording(name: str) -> dict[str, Any]:
    """A recording of requests, releases and the pool's growth."""
    packed = (SNAPSHOTS / f"{name}.json.gz").read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(packed))
    return found


@pytest.mark.parametrize("expandable", [True, False])
def test_a_streams_memory_is_its_own_until_the_pool_is_emptied(expandable: bool) -> None:
    """What it gave back serves nobody else, whatever lies unused there; but the driver may."""

    def short_lived(block: int, stream: int) -> list[tuple[int, int]]:
        return [(on_stream(block, stream), size) for size in (60 * MIB, -60 * MIB)]

    first, *inside = short_lived(0, 0), short_lived(1, 1), short_lived(2, 1)
    used = replay([*first, *inside[0], *inside[1], (3, 60 * MIB)], expandable)
    assert (used.peak_allocated, used.peak_reserved) == (60 * MIB, 120 * MIB)
    used = replay([*first, EMPTY, *inside[0], EMPTY, (3, 60 * MIB)], expandable)
    assert (used.peak_allocated, used.peak_reserved) == (60 * MIB, 60 * MIB)


@pytest.mark.parametrize("name", sorted(p.name.split(".")[0] for p in SNAPSHOTS.glob("*.gz")))
def test_the_replay_does_what_the_real_allocator_did(name: str) -> None:
    """Reserved bytes agree after every single request: tens of thousands in a 7B recording."""
    found = recording(name)
    pool = CachingAllocator(found["settings"]["expandable_segments"], found["cap_bytes"])
    blocks, real, furthest, requests = {}, 0, 0, 0
    for kind, number, size, stream in found["events"]:
        if kind in ("grow", "shrink"):
            real += size if kind == "grow" else -size
        elif kind == "take":
            blocks[number] = pool.take(size, stream)
            furthest = max(furthest, abs(pool.reserved - real))
            requests += 1
        elif kind == "give":
            pool.give(blocks.pop(number))
    assert requests > 5000
    allowed = TIES.get(name, 0.0) * found["peak_reserved_bytes"]
    assert furthest <= allowed
    assert abs(pool.peak_reserved - found["peak_reserved_bytes"]) <= allowed
    assert abs(pool.peak_allocated - found["peak_allocated_bytes"]) <= allowed
    if found["verdict"] == "OOM":  # what failed is no event of its own: ask for it again
        refused = next(size for kind, _, size, _ in found["events"] if kind == "oom")
        with pytest.raises(PoolExhausted, match="allocated and"):
            pool.take(refused)
        assert pool.retries == found["retries"]


def test_recordings_hold_a_cap_that_was_met_and_both_kinds_of_segments() -> None:
    """So that the test above covers retries, and cannot pass on easy recordings alone."""
    found = [recording(p.name.split(".")[0]) for p in SNAPSHOTS.glob("*.gz")]
    assert {f["settings"]["expandable_segments"] for f in found} == {True, False}
    assert {f["verdict"] for f in found if f["cap_bytes"]} == {"OOM"}
    assert all(f["retries"] for f in found if f["cap_bytes"])


# Sizes around every threshold: 512 B, 1 MiB, 2 MiB, 10 MiB, 20 MiB.
SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(MIB - 2048, MIB + 2048),
    st.integers(9 * MIB, 23 * MIB),
    st.integers(1, 64 * MIB),
)
# A number takes that many bytes; None gives back one of the live blocks.
SCRIPTS = st.lists(st.one_of(SIZES, st.none()), min_size=1, max_size=120)


def run(script: list[int | None], expandable: bool, data: st.DataObject) -> CachingAllocator:
    """Play a script and give everything back; check the invariants on the way."""
    pool = CachingAllocator(expandable)
    live: list[Any] = []
    for size in script:
        if size is not None:
            live.append(pool.take(size))
            assert live[-1].size >= size and live[-1].size % 512 == 0
        elif live:
            pool.give(live.pop(data.draw(st.integers(0, len(live) - 1))))
        assert pool.allocated == sum(block.size for block in live) <= pool.reserved
        spans = sorted((block.address, block.address + block.size) for block in live)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), "blocks overlap"
    for block in live:
        pool.give(block)
    return pool


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, st.booleans(), st.data())
def test_blocks_never_overlap_and_everything_comes_back(
    script: list[int | None], expandable: bool, data: st.DataObject
) -> None:
    pool = run(script, expandable, data)
    assert pool.allocated == 0
    reserved = pool.reserved
    pool.empty()
    assert pool.reserved == 0 <= reserved


@settings(max_examples=80, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=40), st.booleans(), st.randoms())
def test_the_order_of_releases_does_not_matter_once_all_are_released(
    sizes: list[int], expandable: bool, random: Any
) -> None:
    """Merged again, the pool is what it was made of: the same free blocks in the same places."""
    free = []
    for shuffled in (False, True):
        pool = CachingAllocator(expandable)
        blocks = [pool.take(size) for size in sizes]
        if shuffled:
            random.shuffle(blocks)
        for block in blocks:
            pool.give(block)
        free.append((pool.reserved, pool._small.unused, pool._large.unused))
    assert free[0] == free[1]


@settings(max_examples=80, deadline=None)
@given(SCRIPTS, st.booleans(), st.integers(24 * MIB, 512 * MIB))
def test_a_cap_is_never_passed(script: list[int | None], expandable: bool, cap: int) -> None:
    pool, live = CachingAllocator(expandable, cap), []
    for size in script:
        try:
            if size is not None:
                live.append(pool.take(size))
            elif live:
                pool.give(live.pop(0))
        except PoolExhausted:
            assert pool.retries
        assert pool.reserved <= cap


def test_unused_memory_is_released_before_a_request_fails() -> None:
    for expandable in (False, True):
        events = [(0, 40 * MIB), (0, -40 * MIB), (1, 60 * MIB)]
        assert replay(events, expandable, 80 * MIB).failed is None
        found = replay([*events, (2, 30 * MIB)], expandable, 80 * MIB)
        assert found.failed is not None and "30.00 MiB asked for" in found.failed
    whole = replay(events, False, 80 * MIB)
    assert (whole.peak_allocated, whole.peak_reserved, whole.retries) == (60 * MIB, 60 * MIB, 1)


def test_small_and_large_requests_come_from_segments_of_their_own() -> None:
    pool = CachingAllocator(expandable=False)
    pool.take(100)
    assert (pool.allocated, pool.reserved) == (512, 2 * MIB)
    pool.take(MIB + 1)
    assert pool.reserved == 22 * MIB
    pool.take(11 * MIB)  # finds room in the large segment
    assert pool.reserved == 22 * MIB
    pool.take(11 * MIB)  # has a segment of its own, of whole 2 MiB
    assert pool.reserved == 34 * MIB
