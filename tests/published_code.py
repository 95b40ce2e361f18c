"""Modules of published packages, for comparison, without what their packages import at the top."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def without_its_top(name: str) -> None:
    """Have an installed package's modules importable, its own `__init__` not run."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
