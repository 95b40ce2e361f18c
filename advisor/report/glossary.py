"""What a word of the answer means: a part of the memory and what changes it, or a setting."""

from __future__ import annotations

import re
from collections.abc import Mapping

from advisor.report.screen_words import PLAN_WORDS, ROWS, SCORE_WORDS, VERDICTS

PARTS = {
    "free": "Free memory on the card as the driver reports it (NVML). For a card that is not in "
    "this machine: its size, minus what driver and display take. Other processes reduce it; "
    "nvidia-smi names them.",
    "context": "What CUDA, its libraries and loaded kernels take in every process before the first "
    "tensor. It depends on card, driver and versions, not on the plan. On a card in this machine "
    "it is measured once. Of several cards each has NCCL's buffers too, which are counted here.",
    "margin": "Left free because forecasts can be too low: by no more than this in 95 % of the "
    "rows measured on this GPU model; with few rows, of those on all, and at least 3 %. Your own "
    "rows count; --measure adds one.",
    "usable": "What the pool may grow to: free memory, minus context and margin.",
    "tensors": "What torch counts as allocated at its peak (max_memory_allocated). lisa-advise "
    "forecast lists what is live then.",
    "process": "What nvidia-smi shows for a run: the pool and the context together.",
    "pool": "What torch's allocator takes from the driver: tensors and the gaps between them. "
    "Expandable segments keep the gaps small.",
    "frozen weights": "The base model: decoder, embeddings and head, projector, mask decoder. "
    "host_embeddings and host_layers keep parts of it in host memory (layers are copied to the "
    "card one ahead); quantization=int8 or nf4 rounds it.",
    "encoders": "The frozen encoders of pictures. With cached_encoders=vision,mask they are not "
    "loaded: their features are read from disk.",
    "adapters": "LoRA's factors in fp32: rank × (inputs + outputs) for each adapted linear. "
    "A lower lora.rank or fewer lora.targets make them smaller.",
    "trained rows": "The new tokens' rows of embedding and head, in fp32.",
    "mask decoder": "The mask decoder if it is trained, in fp32. Frozen if train leaves it "
    "out.",
    "other trained": "Projections that are trained: text_hidden_fcs, projector, or whole "
    "embeddings; in fp32. Whole embeddings are 1 GiB at 7B: train token_rows instead.",
    "gradients": "One fp32 number for each trained one, from the first backward pass to the "
    "update.",
    "gradient buckets": "A second copy of the gradients, where several processes exchange theirs "
    "(torch's DistributedDataParallel). NCCL has buffers of its own beside torch's pool.",
    "optimizer state": "Adam's two moments for each trained number, in fp32. A quarter of it with "
    "optimizer_state=8bit; off the card with optimizer=paged_adamw.",
    "activations kept": "What the forward pass keeps for the backward pass. It grows with "
    "micro_batch and with the text's length; checkpointed layers keep only their input.",
    "transient": "What an operator holds while it runs: a dequantised weight, a recomputed layer, "
    "the loss's logits. A smaller micro_batch and compile reduce it.",
    "compiled layers": "Activations take less with compile=true: a fused layer keeps neither its "
    "gate's product nor a norm's input in fp32. A rule from measured rows, not a count.",
    "keys and values": "What attention keeps for every position while the model answers, and what "
    "a layer holds for a moment. A smaller tokens.max_new_tokens or a shorter question reduce it.",
    "cuBLAS workspaces": "Scratch memory of the library for matrix products: 2 × 32 MiB from "
    "compute capability 9.0 on, 2 × 8 before.",
    "host memory": "The process's resident set: libraries, batches, and all that is kept in host "
    "memory instead of on the card. Fewer host_layers and workers reduce it. A machine's processes "
    "are counted together; what they keep there exists once.",
}  # fmt: skip

EXPLANATIONS = PARTS | ROWS | PLAN_WORDS | SCORE_WORDS | VERDICTS
# How similar a typed word must be to a known one to be suggested, and to be taken for it.
LIKE, SLIP = 0.75, 0.8
# As forecasts call it, and words that stand for others.
ALIASES = {
    "host": "host memory", "on the host": "in host memory", "rank": "r", "gb": "GiB",
    "checkpointing": "checkpointed", "adapter": "adapters", "card of": "larger",
    "on host": "in host memory", "e4m3": "FP8",
}  # fmt: skip


def explain(name: str) -> str:
    """The text for a word of the answer, or for a setting. Raises ValueError naming known ones."""
    import difflib

    from advisor.report.setting_words import explain_setting, setting_called
    from profiles.overrides import SHARDED, SHARDING
    from profiles.plan import setting_names

    wanted = _bare(name)
    by_lower = {_bare(key): key for key in EXPLANATIONS} | ALIASES
    setting = setting_called(name)
    part = next((by_lower[one] for one in _singular(wanted) if one in by_lower), None)
    lines = [explain_setting(setting)] if setting else []
    lines += [f"processes=N {SHARDED}"] if wanted in SHARDING else []
    spelled = {one.replace("_", " "): one for one in setting_names()} | by_lower
    close = difflib.get_close_matches(wanted, spelled, n=1, cutoff=LIKE)
    is_slip = close and difflib.SequenceMatcher(None, wanted, close[0]).ratio() > SLIP
    parts = [part] if part else [] if setting or is_slip else _within(wanted, by_lower)
    lines += [f"{one}: {EXPLANATIONS[one]}" for one in parts]
    if lines:
        return "\n".join(lines)
    hint = f"; did you mean {spelled[close[0]]!r}?" if close else ";"
    where = "docs/words.md has every word, docs/plan.md every setting"
    raise ValueError(f"got {name!r}{hint} {where}")


def _within(phrase: str, known: Mapping[str, str]) -> list[str]:
    """The words that a phrase contains, such as checkpointed in '2 of 36 layers checkpointed'.

    In its order; of 'card of', which stands for another word, the card is none.
    """
    found = [one for one in known if _contains(phrase, one)]
    whole = [one for one in found if not any(one != it and _contains(it, one) for it in found)]
    return list(dict.fromkeys(known[one] for one in sorted(whole, key=f" {phrase} ".index)))


def _contains(phrase: str, words: str) -> bool:
    return f" {words} " in f" {phrase} "


def _bare(name: str) -> str:
    """A word as it is looked up: without numbers, such as the 16 of 'card of 16 GiB'."""
    number = r"(?<![a-z\d])\d[\d.]*%?|(?<=\bb)\d+\b"  # b2: a micro-batch of docs/cards.md
    spaced = re.sub(rf"[_\s-]+|{number}", " ", name.strip().lower())
    return " ".join(spaced.replace("=", " ").split())


def _singular(wanted: str) -> tuple[str, str, str]:
    return wanted, wanted.removesuffix("s"), wanted.removesuffix("es")
