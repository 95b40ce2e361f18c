"""What processes that import torch find around them."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this project in a process of its own.

    `-P`: `python -m` would put the current folder first on the path, and so run a `numpy.py` that
    happens to lie there.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def at_home(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the hub out of reach and compiled code in the user's own cache.

    `PYTHONSAFEPATH` is `-P` for processes that libraries start, such as torch's compilers.
    On CPUs with AVX512-BF16 bitsandbytes would fetch a kernel's code from the hub. torch would
    load compiled code from a folder of /tmp with a name that anyone may have taken first.
    """
    from platformdirs import user_cache_path

    compiled = user_cache_path("lisa-preflight", appauthor=False) / "compiled"
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(compiled)} | dict(environment)
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
