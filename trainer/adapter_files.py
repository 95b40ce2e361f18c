"""An adapter on disk, as PEFT keeps it: what `lisa-train export` writes, and what others trained.

`adapter_model.safetensors` holds everything trained in the model that PEFT wraps: LoRA's factors,
the new tokens' rows (PEFT's trainable tokens), and parts trained whole (PEFT's modules to save).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from profiles.plan import Plan
from profiles.settings import Lora
from profiles.text import brief
from trainer.model.adapter_names import to_peft
from trainer.model.families import family_of
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.weights import WeightsError, legible
from trainer.tensor_files import save_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


def write(
    folder: Path, plan: Plan, lora: Lora, trained: Mapping[str, Tensor], new_ids: Sequence[int]
) -> dict[str, Tensor]:
    """Write PEFT's two files; returns the trained tensors outside the model that PEFT wraps."""
    from trainer.model.adapters import peft_config

    model = family_of(plan.profile).model
    root = f"{model.adapted_at}."
    tables = model.tables()[: 1 if plan.profile.decoder.tied_head else 2]
    whole = [
        _module(prefix)
        for part in plan.train
        for prefix in model.prefixes_of(part)
        if part != "token_rows" and prefix.startswith(root)
    ]
    rows = {name: list(new_ids) for name in map(_module, tables) if name not in whole}
    peft_config(
        lora,
        model,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=None if plan.profile.packaged else plan.profile.sources[0],
        modules_to_save=whole or None,
        trainable_token_indices=rows if "token_rows" in plan.train else None,
    ).save_pretrained(str(folder))
    ours = {
        to_peft(name.removeprefix(root)): value
        for name, value in trained.items()
        if name.startswith(root)
    }
    save_file(ours, folder / TENSORS, metadata={"format": "pt"})
    return {name: value for name, value in trained.items() if not name.startswith(root)}


def _module(prefix: str) -> str:
    """A module's own name, as PEFT's settings have it, from a prefix of its tensors."""
    return prefix.removesuffix("weight").removesuffix(".").rpartition(".")[2]


def read(folder: Path, model: type[SegmentationModel]) -> dict[str, Tensor]:
    """The tensors of a folder's adapter by the model's names; none where there is no adapter.

    A tensor that is not in the model keeps its name. Raises WeightsError.
    """
    path = folder / TENSORS
    if not path.is_file():
        return {}
    tensors: dict[str, Tensor] = {}
    with legible(path), safe_open(path, framework="pt") as file:
        for theirs in file.keys():  # noqa: SIM118
            name = model.from_adapter(theirs) or theirs
            if name in tensors:
                raise WeightsError(f"{path}: {brief(theirs)} is {brief(name)} once more")
            tensors[name] = file.get_tensor(theirs)
    return tensors
