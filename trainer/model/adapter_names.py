"""Names of adapters' tensors: in the model, in checkpoints and in PEFT's files. No torch."""

from __future__ import annotations

import re

TRAINING_PREFIX = "base_model.model."  # peft's wrapper
ADAPTER_NAME = "default"  # PEFT's for a model's only adapter
ROWS, PEFT_ROWS = ".rows", ".token_adapter.trainable_tokens_delta"


def name_in_files(parameter: str) -> str:
    """A parameter's name in checkpoints, which leaves out the adapter's own name.

    PEFT's files do the same, and so did our checkpoints before PEFT."""
    return re.sub(rf"(\.lora_[AB])\.{ADAPTER_NAME}\.", r"\1.", parameter)


def to_peft(inner: str) -> str:
    """A trained tensor's name in PEFT's files, from its name in the model that PEFT wraps."""
    return TRAINING_PREFIX + re.sub(rf"{re.escape(ROWS)}$", PEFT_ROWS, inner)


def from_peft(name: str) -> str:
    """The way back of `to_peft`."""
    return re.sub(rf"{re.escape(PEFT_ROWS)}$", ROWS, name.removeprefix(TRAINING_PREFIX))
