"""Writes files of tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.atomic_folder import apply_umask

_NUMBER = re.compile(r"\(os error (\d+)\)")


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """As safetensors' own, but readable as the umask allows.

    Raises OSError if the system refused, of which safetensors tells in its text alone.
    """
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    apply_umask(path)
