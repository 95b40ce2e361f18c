"""A plan in a few words."""

from __future__ import annotations

from profiles.levers import phrases
from profiles.plan import Plan

LEVERS = ("quantization", "micro_batch", "checkpointed_layers", "host_layers", "compile")


def storage_text(plan: Plan) -> str:
    """How the base weights are stored, in words."""
    return phrases(plan, ("quantization",))


def plan_text(plan: Plan) -> str:
    """The plan's memory levers in a few words."""
    return phrases(plan, ("quantization", "micro_batch", "checkpointed_layers", "host_layers"))


def difference(plan: Plan, other: Plan | None) -> str:
    """What `plan` has that the other one has not, in a few words."""
    names = ["quantization", "micro_batch"]
    if other is None or plan.checkpointed_layers != other.checkpointed_layers:
        names.append("checkpointed_layers")
    names.append("host_layers" if plan.host_layers else "host_embeddings")
    if other is None or plan.compile != other.compile:
        names.append("compile")
    return phrases(plan, names)


def changes(plan: Plan, other: Plan) -> str:
    """The levers that `plan` has set differently from the other one, in a few words."""
    names = [name for name in LEVERS if getattr(plan, name) != getattr(other, name)]
    if plan.host_layers and "checkpointed_layers" in names:  # all, as host layers need
        names.remove("checkpointed_layers")
    undone = {
        "host_layers": "no layers on the host",
        "checkpointed_layers": "none checkpointed",
    }
    words = [undone.get(n, "") if not getattr(plan, n) else phrases(plan, [n]) for n in names]
    return ", ".join(filter(None, words)) or "the same plan"


def lora_text(plan: Plan) -> str:
    """The adapters in a few words."""
    if plan.lora is None:
        return "none"
    return f"r={plan.lora.rank} on {'q,v' if plan.lora.targets == 'qv' else plan.lora.targets}"
