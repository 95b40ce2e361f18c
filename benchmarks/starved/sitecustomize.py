"""For benchmarks/rank_faults.py and tests/gpu: one process of a group runs out of memory, once.

STARVED holds the module, the name of a function in it, the number of its call, the rank, and a
file that exists once it has happened. On a GPU the allocator itself finds no memory.
"""

import os
import sys
import threading
import time

LIMIT_BYTES = 2 << 30  # of the pool on a GPU, from that call on


def _run_out() -> None:
    import torch

    if torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(LIMIT_BYTES / total)
        torch.empty(LIMIT_BYTES, dtype=torch.uint8, device="cuda")
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


def _plant(module: str, name: str, number: str, once: str) -> None:
    while not hasattr(sys.modules.get("trainer.run.run"), "Run"):
        time.sleep(0.01)
    owner = sys.modules[module]
    real, calls = getattr(owner, name), [0]

    def failing(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == int(number) and not os.path.exists(once):
            open(once, "w").close()
            _run_out()
        return real(*arguments, **named)

    setattr(owner, name, failing)


_module, _name, _number, _rank, _once = os.environ["STARVED"].split(",")
if os.environ.get("RANK") == _rank:
    threading.Thread(target=_plant, args=(_module, _name, _number, _once), daemon=True).start()
