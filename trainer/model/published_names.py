"""What every family does with the names of published checkpoints. Names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from trainer.model.families import NamesError

Rules = tuple[tuple[re.Pattern[str], str], ...]  # a pattern, and what it becomes
_ADAPTER = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\.")


def first_rule(name: str, rules: Rules) -> str | None:
    """The name by the first rule that fits all of it; None: no rule does."""
    return next((found.expand(to) for rule, to in rules if (found := rule.fullmatch(name))), None)


def every_step(name: str, steps: Rules) -> str:
    """The name after every step that fits a part of it."""
    for pattern, target in steps:
        name = pattern.sub(target, name)
    return name


def refuse_adapters(names: Iterable[str], how: str) -> None:
    """Raise NamesError if adapters are still apart; `how` they are merged."""
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise NamesError(
            f"{len(adapters)} tensors belong to LoRA adapters that are not merged yet "
            f"({adapters[0]}, …); merge them into the base weights first{how}"
        )


def refuse_collisions(targets: Mapping[str, str | None]) -> None:
    """Raise NamesError if two tensors would be one."""
    owner: dict[str, str] = {}
    for name, target in targets.items():
        if target is not None and (other := owner.setdefault(target, name)) != name:
            raise NamesError(f"{other} and {name} would both become {target}")
