"""For benchmarks/faults.py: a driver library that fails, in every Python process."""

import sys
import types


class NVMLError(Exception):
    """As the driver library raises it."""


def _fails(*_: object) -> None:
    raise NVMLError("Driver/library version mismatch")


sys.modules["pynvml"] = types.ModuleType("pynvml")
sys.modules["pynvml"].__dict__.update(NVMLError=NVMLError, nvmlInit=_fails, nvmlShutdown=_fails)
