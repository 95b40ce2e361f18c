"""A family's configs, made once and copied."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def copied(make: Callable[P, T]) -> Callable[P, T]:
    """`make`, called once for the same arguments; each caller gets a copy of its own.

    transformers checks a config field by field, which takes 5 ms: a third of lisa-tiny's skeleton.
    """
    made = cache(make)

    @wraps(make)
    def copying(*given: P.args, **named: P.kwargs) -> T:
        return deepcopy(made(*given, **named))  # type: ignore[arg-type]

    return copying
