"""For benchmarks/rank_faults.py: one process of a group runs out of memory, once.

STARVED holds the module, the name of a function in it, the number of its call, the rank, and a
file that exists once it has happened.
"""

import os
import sys
import threading
import time


def _plant(module: str, name: str, number: str, once: str) -> None:
    while not hasattr(sys.modules.get("trainer.run.run"), "Run"):
        time.sleep(0.01)
    import torch

    owner = sys.modules[module]
    real, calls = getattr(owner, name), [0]

    def failing(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == int(number) and not os.path.exists(once):
            open(once, "w").close()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return real(*arguments, **named)

    setattr(owner, name, failing)


_module, _name, _number, _rank, _once = os.environ["STARVED"].split(",")
if os.environ.get("RANK") == _rank:
    threading.Thread(target=_plant, args=(_module, _name, _number, _once), daemon=True).start()
