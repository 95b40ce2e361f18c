"""Training that starts from an adapter: one that others trained with PEFT, or an export.

Only adapters that this decoder computes exactly are accepted: plain LoRA with the linears, rank and
scale of the plan. All obstacles are reported at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from profiles.families import VISION
from profiles.files import read_regular, reason
from profiles.plan import Plan
from profiles.settings import Lora
from profiles.text import brief, one_line
from trainer import adapter_files
from trainer.model.adapter_names import ROWS
from trainer.model.build import build, read_tokenizer
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.weights import PLAIN_DTYPES, ShapesAlone, weight_source
from trainer.run.checkpoint import read_trained, trained_parameters, verify
from trainer.run.checkpoint_files import read_facts
from trainer.run.folder import TRAINED

SHOWN = 3  # names of tensors
FACTORS = (".lora_A.weight", ".lora_B.weight")
# PEFT settings that do not change what a trained plain adapter computes, or that are checked
# separately. Every other one must have PEFT's default.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "r",
    "revision", "runtime_config", "target_modules", "task_type", "trainable_token_indices",
})  # fmt: skip
_WHY = {
    "use_dora": "DoRA rescales every row of the weight, which the frozen linears here do not have",
    "use_rslora": "its scale is alpha / sqrt(r), here it is alpha / r",
    "rank_pattern": "ranks differ from linear to linear, here all have the plan's",
    "alpha_pattern": "scales differ from linear to linear, here all have the plan's",
    "layer_replication": "the decoder's layers were repeated, so the base is another",
    "lora_bias": "it has biases of its own, which no adapter here has",
}
_PLAIN_STARTS = (
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
)  # other ways change the base weights too


class AdapterError(ValueError):
    """An adapter that a plan cannot start from; lists every reason and the settings that fit."""


def check_adapter(folder: Path, plan: Plan) -> None:
    """Raise AdapterError, WeightsError, CheckpointError if the plan cannot start from `folder`."""
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, torch.device("meta"), ShapesAlone())
    fitting_tensors(folder, plan, model, tokenizer.new_ids)


def load_adapter(folder: Path, plan: Plan, model: SegmentationModel, new_ids: Sequence[int]) -> int:
    """Load the tensors in `folder` into a model built from the plan; returns their number.

    Raises as `check_adapter` does.
    """
    tensors = fitting_tensors(folder, plan, model, new_ids)
    parameters = trained_parameters(model)
    for name, value in tensors.items():
        parameters[name].data.copy_(value)
    return len(tensors)


def fitting_tensors(
    folder: Path, plan: Plan, model: SegmentationModel, new_ids: Sequence[int]
) -> dict[str, Tensor]:
    """The folder's tensors by the model's names; all are trained. See `check_adapter`."""
    config = _config(folder)
    _refuse_other_base(folder, plan)
    exported = (folder / TRAINED).is_file()
    tensors = (read_trained if exported else adapter_files.read)(folder, type(model))
    shapes = {name: value.shape for name, value in trained_parameters(model).items()}
    found = _fitting_settings(config, tensors, type(model))
    problems = [*_other_kinds(config), *_other_lora(config, plan.lora, tensors, shapes),
                *_other_rows(config, tensors, new_ids), *_strangers(tensors, shapes, model),
                *_misshapen(tensors, shapes, plan), *_unusable(tensors)]  # fmt: skip
    if problems:
        listed = "".join(f"\n    - {problem}" for problem in problems)
        hint = f"\n    hint: as it was trained: {found}" if found else ""
        raise AdapterError(f"{folder}: this plan cannot start from it:{listed}{hint}")
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration as plain data."""
    path = folder / adapter_files.CONFIG
    fix = (
        "--adapter takes a folder that PEFT's save_pretrained wrote, or lisa-train export RUN DST "
        "(of a run or an older export)"
    )
    try:
        config = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: cannot be read: {reason(error)}\n    hint: {fix}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: got {brief(config)}; allowed: a table\n    hint: {fix}")
    if not (folder / adapter_files.TENSORS).is_file():
        there = (folder / "adapter_model.bin").is_file()
        why = "adapter_model.bin is pickled, and nothing is unpickled here" if there else "missing"
        raise AdapterError(
            f"{folder / adapter_files.TENSORS}: {why}\n"
            "    hint: save_pretrained(FOLDER, safe_serialization=True) writes it"
        )
    return config


def _refuse_other_base(folder: Path, plan: Plan) -> None:
    """An export records the base weights it was trained with; PEFT's files do not."""
    if not (folder / TRAINED).is_file():
        return
    verify(folder)
    base, here = read_facts(folder).get("base"), weight_source(plan).fingerprint
    if base not in (None, here):
        raise AdapterError(
            f"{folder}: was trained on base weights {base}; those here are {here}\n"
            "    hint: --weights FOLDER names the folder that it was trained with"
        )


def _other_kinds(config: Mapping[str, Any]) -> Iterator[str]:
    """Why it is not plain LoRA."""
    from peft import LoraConfig

    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"peft_type: got {brief(kind)}; allowed: LORA"
        return
    usual = LoraConfig().to_dict()
    for name, value in config.items():
        if name == "bias" and value != "none":
            yield f"bias: got {brief(value)}; allowed: none, the linears' own biases are frozen"
        elif name not in _HARMLESS and value and value != usual.get(name):
            why = _WHY.get(name, "only plain LoRA is computed here")
            yield f"{one_line(name)[:60]}: got {brief(value)}; {why}"
    begun = config.get("init_lora_weights", True)
    if begun not in _PLAIN_STARTS:
        yield (f"init_lora_weights: got {brief(begun)}; it changed the base weights, which are not "
               "in the folder: save it with path_initial_model_for_weight_conversion")  # fmt: skip


def _other_lora(
    config: Mapping[str, Any], lora: Lora | None, tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
) -> Iterator[str]:  # fmt: skip
    """Differences from the plan in rank, scale or adapted linears."""
    if lora is None:
        yield "the plan has no adapters (lora is none)"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if rank != lora.rank:
        yield f"r: got {brief(rank)}, the plan's lora.rank is {lora.rank}"
    if alpha != lora.alpha:
        yield f"lora_alpha: got {brief(alpha)}, the plan's lora.alpha is {lora.alpha:g}"
    missing = [name for name in shapes if name.endswith(FACTORS) and name not in tensors]
    if missing:
        yield (f"target_modules: {len(missing)} factors of lora.targets={lora.targets} are missing:"
               f" {_shown(missing)}")  # fmt: skip


def _other_rows(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], new_ids: Sequence[int]
) -> Iterator[str]:
    """Trained token rows with ids other than the new tokens' here."""
    if not any(name.endswith(ROWS) for name in tensors):
        return
    recorded = config.get("trainable_token_indices")
    for ids in recorded.values() if isinstance(recorded, dict) else [recorded]:
        if ids != list(new_ids):
            yield (f"trainable_token_indices: got {brief(ids)}; the new tokens here are "
                   f"{list(new_ids)}")  # fmt: skip


def _strangers(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], model: SegmentationModel
) -> Iterator[str]:
    """Tensors that the plan does not train."""
    odd = [name for name in tensors if name not in shapes]
    seen = f"{model.encoders_at[VISION]}."
    frozen = [name for name in odd if name.startswith(seen)]
    if frozen:
        what = f"{len(frozen)} tensors adapt the vision encoder"
        yield f"{what}, which is frozen here: {_shown(frozen)}"
    if rest := [name for name in odd if name not in frozen]:
        yield f"{len(rest)} tensors belong to no part that the plan trains: {_shown(rest)}"


def _misshapen(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], plan: Plan
) -> Iterator[str]:
    """Tensors of a base model of another size; a different rank is reported separately."""
    wrong = []
    for name, value in tensors.items():
        if name in shapes and value.shape != shapes[name]:
            width = -1 if name.endswith(FACTORS[0]) else 0
            whole = not name.endswith(FACTORS) or value.dim() != 2
            if whole or value.shape[width] != shapes[name][width]:
                wrong.append(name)
    if wrong:
        first = wrong[0]
        has, needs = list(tensors[first].shape), list(shapes[first])
        yield (f"{len(wrong)} tensors are of a base of another size than model {plan.model}: "
               f"{brief(first)} has shape {has}, here {needs}")  # fmt: skip


def _unusable(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors that are quantised or hold values that are not finite."""
    packed = [name for name, value in tensors.items() if str(value.dtype) not in PLAIN_DTYPES]
    if packed:
        kind = tensors[packed[0]].dtype
        yield f"{len(packed)} tensors are stored as {kind}: {_shown(packed)}"
    endless = [n for n, v in tensors.items() if n not in packed and not v.isfinite().all()]
    if endless:
        yield f"{len(endless)} tensors hold no finite numbers: {_shown(endless)}"


def _fitting_settings(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: type[SegmentationModel]
) -> str:
    """The options that give a plan these adapters; '' if no plan can have them."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    stems = {name.removesuffix(FACTORS[0]) for name in tensors if name.endswith(FACTORS[0])}
    linears = {re.sub(r".*\blayers\.\d+\.", "", stem) for stem in stems}
    targets = next((key for key, value in model.targets.items() if set(value) == linears), None)
    if targets is None or type(rank) is not int or not isinstance(alpha, int | float):
        return ""
    if not 1 <= rank <= 256 or not math.isfinite(alpha) or alpha <= 0:
        return ""
    return f"--lora-r {rank} --lora-alpha {alpha:g} --set lora.targets={targets}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(brief(name) for name in names[:SHOWN]) + ", …" * (len(names) > SHOWN)
