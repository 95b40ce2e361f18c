"""Forecasts at the corners of the usual plans, and bytes in between: an answer without a rehearsal.

The corners are forecasts of the real step (benchmarks/grid.py). Between them each tier is taken as
linear in the micro-batch, the text's length, the checkpointed and the host layers. That is never
too little: a peak is the largest of some phases, each phase is linear in every one of these, and
the largest of linear functions lies below its chords.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiles.catalog import model_profile

GRID_FILE = Path(__file__).with_name("grid.jsonl")
MICRO_BATCHES = (1, 4, 20)
TEXT_TOKENS = (64, 512)


def reliefs(model: str, host_embeddings: bool) -> list[tuple[int, int]]:
    """(checkpointed, host) layers of the corners, from most memory to least."""
    layers = model_profile(model).llama.layers
    path = [(0, 0), (layers // 2, 0), (layers, 0)]
    return [*path, (layers, layers)] if host_embeddings else path


@dataclass(frozen=True)
class Grid:
    """Bytes of a step on the card (tensors, and the allocator's pool) and in host memory."""

    tensors: float
    pool: float
    host: float
