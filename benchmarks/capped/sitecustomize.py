"""For benchmarks/recovery.py: every Python process keeps its CUDA pool under the GiB in CAP_FILE.

Python imports a module of this name at its start, so a process that takes another's place is
capped as well. The file is looked at all the time: the cap can be lowered while a run is on.
"""

import os
import sys
import threading
import time


def _keep_capped(path: str) -> None:
    applied = 0.0
    while True:
        time.sleep(0.02)
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if not getattr(cuda, "is_initialized", lambda: False)():
            continue
        with open(path) as file:
            cap = float(file.read() or applied)
        if cap != applied:
            total = cuda.get_device_properties(0).total_memory
            cuda.set_per_process_memory_fraction(cap * 2**30 / total)
            applied = cap


if "CAP_FILE" in os.environ:
    threading.Thread(target=_keep_capped, args=(os.environ["CAP_FILE"],), daemon=True).start()
