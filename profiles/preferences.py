"""What counts first among the plans that fit: the names of the orders of preference."""

from __future__ import annotations

from typing import Literal, get_args

Preference = Literal["usual", "speed", "precision", "headroom"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)
