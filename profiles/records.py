"""The base of every record: frozen, and strict about its fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A record that cannot be changed and has no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
