"""The memory available and used when a run ran out of it; the JSON that the run writes."""

from __future__ import annotations

from pydantic import Field

from profiles.plan import Plan
from profiles.records import Frozen


class Shortage(Frozen):
    """An out-of-memory error. Bytes as torch and the driver count them; null without a card."""

    plan: Plan
    phase: str = Field(description="what the run was doing: loading, evaluating, training …")
    step: int = Field(description="optimizer steps done by then")
    error: str = Field(description="the allocator's message")
    gpu: str | None = Field(None, description="name of the card")
    allocated_bytes: int | None = Field(None, description="tensors at their peak")
    reserved_bytes: int | None = Field(None, description="the allocator's pool at its peak")
    limit_bytes: int | None = Field(None, description="what the pool could have had at most")
    limit_before_bytes: int | None = Field(None, description="the same when the run began")
    outside_bytes: int | None = Field(None, description="of the card, taken beside the pool")
    outside_before_bytes: int | None = Field(None, description="the same when the run began")
    components: dict[str, int] = Field(default_factory=dict, description="tensors by what they are")
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def taken_by_others(self) -> int:
        """Bytes by which the memory used outside the pool has grown since the run began."""
        return (self.outside_bytes or 0) - (self.outside_before_bytes or 0)
