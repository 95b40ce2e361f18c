"""What torch can do here, and one real step of lisa-tiny: a child process that prints JSON.

    python -m trainer.rehearse.selftest {cpu,cuda}

`lisa-advise doctor` runs it; a broken CUDA library ends this process, not the doctor.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from profiles.plan import Plan
from trainer.process import import_libraries


def facts(device: str) -> dict[str, Any]:
    """Versions and devices, and the loss of one step or the error in its place."""
    import_libraries()
    import torch

    from trainer.hardware import versions
    from trainer.model.build import check_compiler

    found: dict[str, Any] = {"versions": versions(), "torch_cuda": torch.version.cuda,
                             "architectures": torch.cuda.get_arch_list(),
                             "cuda_available": torch.cuda.is_available(),
                             "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(
                                 including_emulation=False)}  # fmt: skip
    try:
        check_compiler()
        found["compiler"] = ""
    except ValueError as error:
        found["compiler"] = str(error).splitlines()[0].removeprefix("compile: ")
    try:
        return found | {"loss": _step(device, found["bf16"])}
    except Exception as error:  # whatever is broken here is what the doctor reports
        return found | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def _step(device: str, bf16: bool) -> float:
    from trainer.rehearse.real import Rehearsal
    from trainer.step import training_step

    dtype = "fp32" if device == "cpu" else "bf16" if bf16 else "fp16"
    settings = {"model": "tiny", "device": device, "quantization": "nf4", "dtype": dtype}
    rehearsal = Rehearsal(Plan.parse(settings), (64, 64), 1)
    result = training_step(
        rehearsal.model, list(rehearsal.samples.step()), rehearsal.optimizer, rehearsal.plan,
        rehearsal.accelerator,
    )  # fmt: skip
    return result.loss


def main() -> None:
    """Entry point of the child process."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints, stdout holds the facts
    print(json.dumps(facts(sys.argv[1])), file=out, flush=True)


if __name__ == "__main__":
    main()
