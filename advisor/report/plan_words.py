"""A plan in a few words."""

from __future__ import annotations

from profiles.plan import Plan


def storage_text(plan: Plan) -> str:
    """How the base weights are stored, in words."""
    return f"{plan.dtype if plan.quantization == 'none' else plan.quantization} base"


def plan_text(plan: Plan) -> str:
    """The plan's memory levers in a few words."""
    layers = plan.profile.decoder.layers
    parts = [storage_text(plan), f"micro-batch {plan.micro_batch}"]
    parts.append(f"{plan.checkpointed_layers} of {layers} layers checkpointed")
    parts += [f"{plan.host_layers} on the host"] if plan.host_layers else []
    return ", ".join(parts)


def lora_text(plan: Plan) -> str:
    """The adapters in a few words."""
    if plan.lora is None:
        return "none"
    return f"r={plan.lora.rank} on {'q,v' if plan.lora.targets == 'qv' else plan.lora.targets}"
