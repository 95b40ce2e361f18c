"""The lattice of plans, and the order in which levers are pulled.

The plans of a family share the storage of the base weights, compilation, the place of the
embeddings and the micro-batch. They differ in how many decoder layers they recompute, and then in
how many they keep in host memory. All have the same effective batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from profiles.batches import micro_batches
from profiles.findings import PlanError
from profiles.grid import MICRO_BATCHES
from profiles.levers import from_most_to_least
from profiles.plan import Plan


@dataclass(frozen=True)
class Family:
    """Plans that differ in what they trade for memory: `path`, from the largest to the smallest."""

    plan: Plan
    path: tuple[tuple[int, int], ...]  # (checkpointed, host) layers
    _plans: dict[int, Plan] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def on_card(self) -> int:
        """The last step that keeps every layer on the card; the first where none does."""
        return max((step for step, (_, hosted) in enumerate(self.path) if not hosted), default=0)

    def at(self, step: int) -> Plan:
        """The plan `step` steps along the path."""
        if step not in self._plans:
            checkpointed, hosted = self.path[step]
            update = {"checkpointed_layers": checkpointed, "host_layers": hosted}
            self._plans[step] = self.plan.model_copy(update=update)
        return self._plans[step]


def families(base: Plan, pinned: Iterable[str]) -> Sequence[Family]:
    """Every family that can be made from `base` without changing its `pinned` settings."""
    return _families(base, frozenset(pinned))


@lru_cache(8)  # the plans are the same for every card and preference
def _families(base: Plan, pinned: frozenset[str]) -> Sequence[Family]:
    return tuple(_made(base, pinned))


def _made(base: Plan, pinned: frozenset[str]) -> Iterator[Family]:
    def free(setting: str, values: Sequence[Any]) -> Sequence[Any]:
        return [getattr(base, setting)] if setting in pinned else values

    settings = product(
        free("quantization", from_most_to_least("quantization")),
        free("compile", (True, False)),
        free("host_embeddings", from_most_to_least("host_embeddings")),
        _micro_batches(base, pinned),
    )
    for storage, compiled, hosted, micro_batch in settings:
        update = {
            "quantization": storage, "compile": compiled, "host_embeddings": hosted,
            "micro_batch": micro_batch, "accumulation": None,
        }  # fmt: skip
        path = tuple(_path(base, pinned, hosted))
        update |= dict(zip(("checkpointed_layers", "host_layers"), path[0], strict=True))
        try:
            plan = Plan.parse(base.model_dump(mode="json") | update)
        except PlanError:
            continue  # such as a host table under whole trained embeddings
        yield Family(plan, path)


def _micro_batches(base: Plan, pinned: frozenset[str]) -> Sequence[int]:
    if pinned & {"micro_batch", "accumulation"}:
        return [base.micro_batch]
    return micro_batches(base, MICRO_BATCHES[-1])


def _path(base: Plan, pinned: frozenset[str], hosted: bool) -> Iterator[tuple[int, int]]:
    layers = base.profile.decoder.layers
    if {"checkpointed_layers", "host_layers"} <= pinned:
        yield base.checkpointed_layers, base.host_layers
    elif "host_layers" in pinned:
        yield from ((n, base.host_layers) for n in range(base.host_layers, layers + 1))
    else:
        most = base.checkpointed_layers if "checkpointed_layers" in pinned else layers
        if "checkpointed_layers" not in pinned:
            yield from ((n, 0) for n in range(layers))
        # Layers leave the card only after the smaller thing, the embeddings, has.
        yield from ((most, n) for n in range((most if hosted else 0) + 1))
