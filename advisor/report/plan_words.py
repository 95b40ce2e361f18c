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


def changes(plan: Plan, other: Plan | None) -> str:
    """The levers that `plan` has set differently from the other one, in a few words."""
    if other is None:
        return plan_text(plan)
    names = [name for name in LEVERS if getattr(plan, name) != getattr(other, name)]
    if plan.host_layers and "checkpointed_layers" in names:  # all, as host layers need
        names.remove("checkpointed_layers")
    undone = {"host_layers": "no layers on the host", "checkpointed_layers": "none checkpointed"}
    words = [undone.get(n, "") if not getattr(plan, n) else phrases(plan, [n]) for n in names]
    if found := ", ".join(filter(None, words)):
        return found
    if plan.host_embeddings != other.host_embeddings:
        return f"embeddings {'in host memory' if plan.host_embeddings else 'on the card'}"
    return "not compiled" if other.compile and not plan.compile else "the same plan"


def lora_text(plan: Plan) -> str:
    """The adapters in a few words."""
    if plan.lora is None:
        return "none"
    return f"r={plan.lora.rank} on {'q,v' if plan.lora.targets == 'qv' else plan.lora.targets}"
