"""A plan in a few words."""

from __future__ import annotations

from profiles.levers import phrases
from profiles.plan import Plan

SHAPE = "quantization", "micro_batch", "checkpointed_layers", "host_layers", "host_embeddings"
LEVERS = (*SHAPE, "compile")
UNDONE = {
    "host_layers": "no layers on the host",
    "checkpointed_layers": "none checkpointed",
    "host_embeddings": "embeddings on the card",
    "compile": "not compiled",
}


def storage_text(plan: Plan) -> str:
    """How the base weights are stored, in words."""
    return phrases(plan, ("quantization",))


def plan_text(plan: Plan) -> str:
    """The plan's memory levers in a few words."""
    return phrases(plan, SHAPE)


def changes(plan: Plan, other: Plan | None) -> str:
    """The levers in which `plan` differs from the other plan, in a few words."""
    if other is None:
        return plan_text(plan)
    names = [name for name in LEVERS if getattr(plan, name) != getattr(other, name)]
    if plan.host_layers and "checkpointed_layers" in names:  # all, as host layers need
        names.remove("checkpointed_layers")
    words = (phrases(plan, [n]) if getattr(plan, n) else UNDONE[n] for n in names)
    return ", ".join(words) or "the same plan"


def lora_text(plan: Plan) -> str:
    """The adapters in a few words."""
    if plan.lora is None:
        return "none"
    return f"r={plan.lora.rank} on {'q,v' if plan.lora.targets == 'qv' else plan.lora.targets}"
