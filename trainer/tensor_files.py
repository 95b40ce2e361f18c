"""Writes files of tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

_NUMBER = re.compile(r"\(os error (\d+)\)")


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write as safetensors does, but with the usual rights of a new file, not only the owner's.

    On a shared machine others use models and caches too, unless the umask forbids it. Raises
    OSError if the system refused to write, which safetensors reports only in its message.
    """
    path.touch()
    rights = path.stat().st_mode  # the umask is the whole process's: a thread cannot look it up
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    path.chmod(rights)
