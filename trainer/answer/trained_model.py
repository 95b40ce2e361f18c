"""Finds and loads a trained model: in a run, a checkpoint, an export, or a model folder.

torch is imported only to load it, so that a missing model is reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.files import read_regular, reason
from profiles.plan import Plan
from profiles.text import argument, one_line
from trainer.run.folder import TRAINED

if TYPE_CHECKING:
    import torch

    from trainer.model.segmentation_model import SegmentationModel
    from trainer.model.tokenizer import ConversationTokenizer

ORIGIN = "conversion.json"  # names the model of a converted or merged folder


@dataclass(frozen=True)
class Trained:
    """A plan for inference, and the folder of the trained tensors, if they are separate."""

    plan: Plan
    folder: Path | None

    @property
    def may_round(self) -> bool:
        """Whether inference may choose any storage of the base weights: training has fixed none."""
        return self.folder is None

    @property
    def fingerprint(self) -> str:
        """Identifies the tensors that the answers come from. Raises WeightsError."""
        from trainer.model.weights import fingerprint_of, weight_source

        own = [] if self.folder is None else [fingerprint_of([self.folder / TRAINED])]
        return "-".join([weight_source(self.plan).fingerprint, *own])

    def load(
        self, plan: Plan, tokenizer: ConversationTokenizer, device: torch.device
    ) -> SegmentationModel:
        """The model under `plan`, ready to answer. Raises WeightsError, CheckpointError."""
        from trainer.model.build import TORCH_DTYPES, build
        from trainer.run import checkpoint

        if self.folder is not None:
            checkpoint.verify(self.folder)
        # Inference needs no tensor wider than the dtype of the computation.
        model = build(plan, tokenizer, device, trained_dtype=TORCH_DTYPES[plan.dtype]).eval()
        if self.folder is not None:
            self._check_base(self.folder)
            checkpoint.load(self.folder, model)
        return model

    def _check_base(self, folder: Path) -> None:
        """Raise CheckpointError if the tensors were trained with other base weights."""
        from trainer.model.weights import weight_source
        from trainer.run.checkpoint import CheckpointError
        from trainer.run.checkpoint_files import read_facts

        base = read_facts(folder).get("base")
        here = weight_source(self.plan).fingerprint
        if base not in (None, here):
            raise CheckpointError(
                f"{folder}: was trained on base weights {base}; those here are {here}\n"
                "    hint: --set weights=FOLDER names the folder that it was trained with"
            )


def find_trained(
    where: Path, assignments: Sequence[str] = (), sees_gpu: Callable[[], bool] | None = None
) -> Trained:
    """The trained model in `where`, with settings for inference; without a GPU for the CPU.

    `sees_gpu` says whether there is a GPU for a model that was trained on one; by default torch
    says it. Products are in dtype, so that answers are the same on cards with and without FP8.

    Raises ValueError where there is no model, PlanError.
    """
    folder = next((f for f in (where, where / "best") if (f / TRAINED).is_file()), None)
    if folder is not None:
        plan = Plan.read(folder / "plan.json")
    elif (where / ORIGIN).is_file():
        plan = _untrained(where)
    else:
        raise ValueError(f"{where}: {_why_none(where)}")
    answering: dict[str, object] = {
        "cached_encoders": list(plan.profile.encoders), "compile": False, "processes": 1,
        "nodes": 1, "accumulation": 1, "effective_batch": None, "products": "dtype",
    }  # fmt: skip
    if plan.device == "cuda" and not (sees_gpu or _sees_gpu)():
        answering |= {"device": "cpu", "optimizer": "adamw", "host_layers": 0}
        answering |= {"dtype": "fp32" if plan.profile.packaged else "bf16"}
    plan = Plan.parse(plan.model_dump(mode="json") | answering).override(assignments)
    return Trained(plan, folder)


def _why_none(where: Path) -> str:
    """Why a folder holds no model, and which folder to name instead."""
    others = sorted(f.parent for f in where.glob(f"*/{TRAINED}") if f.parent.name[0] != ".")
    if others:
        what = "this run has no best checkpoint yet"
        fix = f"name {' or '.join(map(one_line, others))}, or lisa-train --resume {argument(where)}"
    elif (where / "plan.json").is_file():
        what = "this run has saved no checkpoint yet"
        fix = f"wait, or lisa-train --resume {argument(where)}"
    else:
        what = "no trained model here" if where.is_dir() else "no such folder"
        fix = "name a run folder of lisa-train, one of its checkpoints, an export, or a folder " \
              "that lisa-train convert wrote"  # fmt: skip
    return f"{what}\n    hint: {fix}"


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _untrained(folder: Path) -> Plan:
    """A plan for a whole model; its training settings have no effect. Raises ValueError."""
    try:
        model = json.loads(read_regular(folder / ORIGIN))["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / ORIGIN}: names no model: {reason(error)}") from None
    settings = {"model": model, "weights": str(folder.resolve()), "device": "cuda",
                "quantization": "none", "lora": None, "train": ["mask_decoder"]}  # fmt: skip
    return Plan.parse(settings)
