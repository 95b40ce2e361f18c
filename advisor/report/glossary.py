"""What a component of the memory is, what it hangs on, and what makes it smaller."""

from __future__ import annotations

EXPLANATIONS = {
    "free": "What the driver (NVML) says is free on the card; of a card that is not here, its size "
    "less what driver and display take. Smaller by other processes: nvidia-smi names them.",
    "context": "What CUDA, its libraries and loaded kernels take in every process before the first "
    "tensor. It hangs on card, driver and versions, not on the plan; measured once on a card here.",
    "margin": "Left free because forecasts are not exact: the 95 % quantile of how far they fell "
    "short before on this GPU model. Your own measured rows count; --measure adds one.",
    "usable": "What the pool may grow to: free, less context and margin.",
    "tensors": "What torch counts as allocated at its peak (max_memory_allocated). Smaller by what "
    "is live then: lisa-advise forecast lists it.",
    "process": "What nvidia-smi shows of a run: the pool and the context together.",
    "pool": "What torch's allocator takes from the driver: tensors and the gaps between them. "
    "Expandable segments keep the gaps small.",
    "frozen weights": "The base model: decoder, embeddings and head, projector, mask decoder. "
    "Smaller by host_embeddings, host_layers (the layers are copied in one ahead) and, rounding "
    "them, by quantization=int8 or nf4.",
    "encoders": "CLIP's and SAM's frozen encoders. Gone with cached_encoders=vision,mask: their "
    "features are then read from disk.",
    "adapters": "LoRA's factors in fp32: rank × (inputs + outputs) for each adapted linear. "
    "Smaller by lora.rank and lora.targets.",
    "trained rows": "The new tokens' rows of embedding and head, in fp32.",
    "mask decoder": "SAM's mask decoder where it is trained, in fp32. Frozen if train leaves it "
    "out.",
    "other trained": "Projections that are trained: text_hidden_fcs, projector, or whole "
    "embeddings; in fp32. Whole embeddings are 1 GiB at 7B: train token_rows instead.",
    "gradients": "One fp32 number for each trained one, from the first backward pass to the "
    "update.",
    "optimizer state": "Adam's two moments for each trained number, fp32. A quarter of it with "
    "optimizer_state=8bit; off the card with optimizer=paged_adamw.",
    "activations kept": "What the forward pass leaves for the backward pass. It grows with "
    "micro_batch and with the text's length; checkpointed layers keep only their input.",
    "transient": "What an operator holds while it runs: a widened weight, a recomputed layer, the "
    "loss's logits. Smaller by micro_batch and by compile.",
    "compiled layers": "What compile=true saves, hence below zero: a fused layer keeps neither its "
    "gate's product nor the widened input of a norm. A rule from measured rows, not a count.",
    "keys and values": "What attention keeps of every position while an answer is made, and what "
    "a layer holds for a moment. Smaller by tokens.max_new_tokens and a shorter question.",
    "cuBLAS workspaces": "Scratch memory of the library for matrix products: 2 × 32 MiB from "
    "compute capability 9.0 on, 2 × 8 before.",
    "host memory": "The process's resident set: libraries, batches, and whatever lives in host "
    "memory instead of on the card. Smaller by fewer host_layers and workers.",
}  # fmt: skip

ALIASES = {"host": "host memory"}  # as forecasts call it


def explain(component: str) -> str:
    """The text for `component`. Raises ValueError naming the known ones."""
    import difflib

    name = component.strip().lower().replace("_", " ").replace("-", " ")
    by_lower = {key.lower(): key for key in EXPLANATIONS} | ALIASES
    if name in by_lower:
        key = by_lower[name]
        return f"{key}: {EXPLANATIONS[key]}"
    close = difflib.get_close_matches(name, by_lower, n=1)
    hint = f"; did you mean {by_lower[close[0]]!r}?" if close else ""
    raise ValueError(f"got {component!r}{hint}; known: {', '.join(EXPLANATIONS)}")
