"""PyTorch's CUDA caching allocator, replayed: a trace of requests -> bytes of the pool.

A model of `DeviceCachingAllocator` (c10/cuda/CUDACachingAllocator.cpp, torch 2.11-2.13) as far as
one process meets it: sizes rounded up to 512 bytes, a pool of small and one of large blocks on each
stream, best fit, splitting and merging, whole segments or expandable ones, and under a cap the
release of what lies unused before the request is tried again. The private pool of a graph capture
is one more stream's. Left out: `max_split_size`, `garbage_collection_threshold` and
`roundup_power2_divisions`, which plans do not set, and blocks shared between streams, which the
trainer does not have.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from profiles.pool_events import stream_of
from profiles.sizes import MIB

MIN_BLOCK = 512  # kMinBlockSize
SMALL_REQUEST = MIB  # kSmallSize: up to it from the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer
LARGE_REQUEST = 10 * MIB  # kMinLargeAlloc: from it on a segment of its own size
LARGE_ROUNDING = 2 * MIB  # kRoundLarge
# Bytes of an expandable segment's address range: more than any card has, and whole pages.
ADDRESS_SPACE = LARGE_SEGMENT << 24


class PoolExhausted(RuntimeError):
    """A request that does not fit under the cap, even after unused memory was released."""


class Block:
    """A piece of a segment; its neighbours in the segment are `before` and `after`."""

    __slots__ = ("address", "after", "before", "mapped", "pool", "size", "stream", "used")

    def __init__(self, pool: _Pool, stream: int, size: int, address: int) -> None:
        self.pool, self.stream, self.size, self.address = pool, stream, size, address
        self.before: Block | None = None
        self.after: Block | None = None
        self.used = False
        self.mapped = True  # false: address space of an expandable segment without memory behind

    def place_between(self, before: Block | None, after: Block | None) -> None:
        """Become the neighbour of both."""
        self.before, self.after = before, after
        if before is not None:
            before.after = self
        if after is not None:
            after.before = self


class _Pool:
    """The unused blocks of one kind: by (stream, size, address) and, unmapped, by address."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT  # bytes that are mapped at once
        self.unused: list[tuple[int, int, int]] = []
        self.unmapped: list[tuple[int, int]] = []
        self.blocks: dict[int, Block] = {}  # unused or unmapped, by address

    def add(self, block: Block) -> None:
        self.blocks[block.address] = block
        if block.mapped:
            insort(self.unused, (block.stream, block.size, block.address))
        else:
            insort(self.unmapped, (block.stream, block.address))

    def remove(self, block: Block) -> None:
        del self.blocks[block.address]
        if block.mapped:
            del self.unused[bisect_left(self.unused, (block.stream, block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.stream, block.address))]


class CachingAllocator:
    """The pool of one process on one card: `allocated` and `reserved` bytes and their peaks."""

    def __init__(self, expandable: bool, cap_bytes: int | None = None) -> None:
        self.expandable, self.cap_bytes = expandable, cap_bytes
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.retries = 0
        self._small, self._large = _Pool(small=True), _Pool(small=False)
        self._next_address = self._lowest_address = ADDRESS_SPACE

    def take(self, size: int, stream: int = 0) -> Block:
        """A block for a request of `size` bytes. Raises PoolExhausted."""
        size = max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)
        pool = self._small if size <= SMALL_REQUEST else self._large
        block = self._best_fit(pool, size, stream) or self._grow(pool, size, stream)
        if block is None:
            self.empty()
            self.retries += 1
            block = self._grow(pool, size, stream)
        if block is None:
            raise PoolExhausted(
                f"{size / MIB:.2f} MiB asked for; {self.allocated / MIB:.0f} MiB allocated and "
                f"{self.reserved / MIB:.0f} MiB reserved"
            )
        self._split(block, size)
        block.used = True
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def give(self, block: Block) -> None:
        """Back into the pool, merged with unused neighbours."""
        self.allocated -= block.size
        block.used = False
        self._merge(block)
        block.pool.add(block)

    def _best_fit(self, pool: _Pool, size: int, stream: int) -> Block | None:
        """The smallest unused block that holds `size`."""
        keys = pool.unused
        place = bisect_left(keys, (stream, size, 0))
        if place == len(keys) or keys[place][0] != stream:
            return None
        if self.expandable:
            # A block that can still grow counts with what it can grow to.
            while (
                place + 1 < len(keys)
                and keys[place + 1][0] == stream
                and _room(pool.blocks[keys[place + 1][2]]) < _room(pool.blocks[keys[place][2]])
            ):
                place += 1
        block = pool.blocks[keys[place][2]]
        pool.remove(block)
        return block

    def _grow(self, pool: _Pool, size: int, stream: int) -> Block | None:
        """A block of new memory, taken out of the pool; None if the cap forbids it."""
        fresh = _segment_size(size)
        if self.cap_bytes is not None and self.reserved + fresh > self.cap_bytes:
            return None
        if self.expandable:
            return self._expand(pool, size, stream)
        self._reserve(fresh)
        # Blocks of one size are taken in the order of their addresses, which the driver chooses. As
        # seen on an H100: small segments upwards, large ones downwards.
        if not pool.small:
            self._lowest_address -= fresh
            return Block(pool, stream, fresh, self._lowest_address)
        self._next_address += fresh
        return Block(pool, stream, fresh, self._next_address - fresh)

    def _reserve(self, size: int) -> None:
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _expand(self, pool: _Pool, size: int, stream: int) -> Block | None:
        """Map memory behind the first address range that has room for `size`."""
        block = self._expandable_block(pool, size, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.after
            assert following is not None  # the range was chosen for its room
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following
        pool.remove(block)
        return block

    def _expandable_block(self, pool: _Pool, size: int, stream: int) -> Block:
        start = bisect_left(pool.unmapped, (stream, 0))
        for owner, address in pool.unmapped[start:]:
            if owner != stream:
                break
            block = pool.blocks[address]
            if block.before is not None and not block.before.used:
                block = block.before
            if _free_from(block, size):
                return block
        block = Block(pool, stream, ADDRESS_SPACE, self._next_address)
        self._next_address += ADDRESS_SPACE
        block.mapped = False
        pool.add(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the first `size` bytes of an unmapped block, in whole pages."""
        page = block.pool.page
        mapped = min(block.size, -(-size // page) * page)
        if self.cap_bytes is not None and self.reserved + mapped > self.cap_bytes:
            return False
        block.pool.remove(block)
        if mapped < block.size:
            rest = Block(block.pool, block.stream, block.size - mapped, block.address + mapped)
            rest.mapped = False
            rest.place_between(block, block.after)
            block.size = mapped
            block.pool.add(rest)
        block.mapped = True
        self._reserve(mapped)
        self._merge(block)
        block.pool.add(block)
        return True

    def _split(self, block: Block, size: int) -> None:
        """Give back what a found block has beyond `size`, where that is worth a block."""
        left = block.size - size
        keen = block.pool.small or self.expandable
        if left < MIN_BLOCK if keen else left <= SMALL_REQUEST:
            return
        rest = Block(block.pool, block.stream, left, block.address + size)
        rest.place_between(block, block.after)
        block.size = size
        block.pool.add(rest)

    def _merge(self, block: Block) -> None:
        """Take in the neighbours that are unused and mapped (or not) alike."""
        for other in (block.before, block.after):
            if other is None or other.used or other.mapped != block.mapped:
                continue
            other.pool.remove(other)
            if other is block.before:
                block.address = other.address
                block.place_between(other.before, block.after)
            else:
                block.place_between(block.before, other.after)
            block.size += other.size

    def empty(self) -> None:
        """Give memory in which nothing is used back to the driver."""
        for pool in (self._large, self._small):
            for *_, address in list(pool.unused):
                block = pool.blocks[address]
                if self.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def _unmap(self, block: Block) -> None:
        """Take the memory from behind the whole pages of an unused block."""
        pool, page = block.pool, block.pool.page
        first = -(-block.address // page) * page
        last = (block.address + block.size) // page * page
        if first >= last:
            return
        pool.remove(block)
        for address, size, before in (
            (block.address, first - block.address, True),
            (last, block.address + block.size - last, False),
        ):
            if size:
                rest = Block(pool, block.stream, size, address)
                around = (block.before, block) if before else (block, block.after)
                rest.place_between(*around)
                pool.add(rest)
        block.address, block.size, block.mapped = first, last - first, False
        self.reserved -= block.size
        self._merge(block)
        pool.add(block)


@dataclass(frozen=True)
class PoolUse:
    """The result of a replay, in bytes; `failed` is the request that did not fit."""

    peak_allocated: int
    peak_reserved: int
    retries: int
    failed: str | None = None


def replay(
    events: Iterable[tuple[int, int]], expandable: bool, cap_bytes: int | None = None
) -> PoolUse:
    """Run (block number, bytes asked for) through the allocator; negative bytes give it back.

    The numbers have streams (`profiles.pool_events`); what a CUDA graph records has one, too.
    """
    pool = CachingAllocator(expandable, cap_bytes)
    blocks: dict[int, Block] = {}
    failed = None
    try:
        for number, size in events:
            if size > 0:
                blocks[number] = pool.take(size, stream_of(number))
            elif size < 0:
                pool.give(blocks.pop(number))
            else:
                pool.empty()
    except PoolExhausted as error:
        failed = str(error)
    return PoolUse(pool.peak_allocated, pool.peak_reserved, pool.retries, failed)


def _segment_size(size: int) -> int:
    """Bytes that a request adds to the pool when nothing there fits."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < LARGE_REQUEST:
        return LARGE_SEGMENT
    return -(-size // LARGE_ROUNDING) * LARGE_ROUNDING


def _room(block: Block) -> int:
    """Bytes of a block and of the unmapped range behind it."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _free_from(block: Block | None, size: int) -> bool:
    """Whether `size` bytes from the block's start are unused, mapped or not."""
    found = 0
    while found < size and block is not None and not block.used:
        found += block.size
        block = block.after
    return found >= size
