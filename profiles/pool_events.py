"""What a rehearsal and the replay of its pool agree on: the form of their events.

An event is (block, bytes), −bytes for a release. A block's number contains its CUDA stream: a pool
never gives memory freed on one stream to another.
"""

from __future__ import annotations

STREAM = 1 << 40
EMPTY = (-1, 0)  # torch.cuda.empty_cache: what nothing uses goes back to the driver


def on_stream(block: int, stream: int) -> int:
    """The block's number with its stream."""
    return block + stream * STREAM


def stream_of(number: int) -> int:
    """The stream of a block that has it in its number."""
    return number // STREAM
