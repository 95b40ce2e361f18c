"""Names of published checkpoints -> this model's names. Names alone: no tensor is looked at.

Known: transformers' LLaVA (three generations), CLIP and SAM; the released LISA and its training
checkpoints; the original SAM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.model.adapter_names import TRAINING_PREFIX, from_peft
from trainer.model.families import NamesError
from trainer.model.published_names import (
    every_step,
    first_rule,
    refuse_adapters,
    refuse_collisions,
)

LISA_SAM_PREFIX = "model.visual_model."
LLAMA = "llava.model.language_model."
CLIP = "llava.model.vision_tower."
PROJECTOR = "llava.model.multi_modal_projector."
SAM_POSITIONS = "sam.shared_image_embedding.positional_embedding"

# The first that fits the whole name wins.
RULES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"(?:language_model\.)?lm_head\.(.+)", r"llava.lm_head.\1"),
        (r"(?:language_model\.model|model\.language_model)\.(.+)", rf"{LLAMA}\1"),
        (r"model\.((?:embed_tokens|layers|norm)\..+)", rf"{LLAMA}\1"),
        (r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)", rf"{CLIP}\1"),
        (r"vision_model\.(.+)", rf"{CLIP}\1"),
        (r"((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", rf"{CLIP}\1"),
        (r"(?:model\.)?multi_modal_projector\.(.+)", rf"{PROJECTOR}\1"),
        (r"model\.mm_projector\.(weight|bias)", rf"{PROJECTOR}linear.\1"),
        (r"model\.mm_projector\.0\.(weight|bias)", rf"{PROJECTOR}linear_1.\1"),
        (r"model\.mm_projector\.2\.(weight|bias)", rf"{PROJECTOR}linear_2.\1"),
        (r"(?:model\.)?text_hidden_fcs\.0\.([02])\.(weight|bias)", r"text_hidden_fcs.\1.\2"),
    )
)
SAM_PARTS = re.compile(
    r"(?:image_encoder|vision_encoder|prompt_encoder|mask_decoder|shared_image_embedding)\.."
)
# What only one of SAM's two namings has. They must be distinguished: `layers.0` of a small network
# is its first layer in one and its second in the other, of the same shape.
ORIGINAL_MARK = re.compile(
    r"image_encoder\.|\.pe_layer\.|\.point_embeddings\.|\.mask_downscaling\.|\.output_upscaling\."
)
TRANSFORMERS_MARK = re.compile(
    r"vision_encoder\.|shared_|\.point_embed\.|\.mask_embed\.|\.upscale_|\.proj_in\."
)
# From the original SAM, part by part; every step that fits is taken.
ORIGINAL_SAM = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
         "shared_image_embedding.positional_embedding"),
        (r"^image_encoder\.", "vision_encoder."),
        (r"^(vision_encoder\.patch_embed)\.proj\.", r"\1.projection."),
        (r"^(vision_encoder)\.blocks\.(\d+)\.norm([12])\.", r"\1.layers.\2.layer_norm\3."),
        (r"^(vision_encoder)\.blocks\.", r"\1.layers."),
        (r"^(vision_encoder\.neck)\.0\.", r"\1.conv1."),
        (r"^(vision_encoder\.neck)\.1\.", r"\1.layer_norm1."),
        (r"^(vision_encoder\.neck)\.2\.", r"\1.conv2."),
        (r"^(vision_encoder\.neck)\.3\.", r"\1.layer_norm2."),
        (r"^(prompt_encoder)\.point_embeddings\.", r"\1.point_embed."),
        (r"^(prompt_encoder)\.mask_downscaling\.0\.", r"\1.mask_embed.conv1."),
        (r"^(prompt_encoder)\.mask_downscaling\.1\.", r"\1.mask_embed.layer_norm1."),
        (r"^(prompt_encoder)\.mask_downscaling\.3\.", r"\1.mask_embed.conv2."),
        (r"^(prompt_encoder)\.mask_downscaling\.4\.", r"\1.mask_embed.layer_norm2."),
        (r"^(prompt_encoder)\.mask_downscaling\.6\.", r"\1.mask_embed.conv3."),
        (r"^(mask_decoder)\.output_upscaling\.0\.", r"\1.upscale_conv1."),
        (r"^(mask_decoder)\.output_upscaling\.1\.", r"\1.upscale_layer_norm."),
        (r"^(mask_decoder)\.output_upscaling\.3\.", r"\1.upscale_conv2."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2."),
        (r"^(mask_decoder\.transformer)\.norm_final_attn\.", r"\1.layer_norm_final_attn."),
        (r"^(mask_decoder\..+)(?<!transformer)\.layers\.0\.", r"\1.proj_in."),
        (r"^(mask_decoder\..+)(?<!transformer)\.layers\.1\.", r"\1.layers.0."),
        (r"^(mask_decoder\..+)(?<!transformer)\.layers\.2\.", r"\1.proj_out."),
    )
)  # fmt: skip
MERGE = ", as upstream's merge_lora_weights_and_save_hf_model.py does"


def target_names(names: Iterable[str]) -> dict[str, str | None]:
    """Each name of one checkpoint -> the model's name for that tensor; None: of no use here.

    Raises NamesError where two tensors would be one, or adapters are still apart.
    """
    names = sorted(names)
    refuse_adapters(names, MERGE)
    bare = {name: name.removeprefix(TRAINING_PREFIX) for name in names}
    sam = [name for name in bare.values() if SAM_PARTS.match(_without_lisa(name))]
    original = _is_original(sam)
    result = {name: _target(text, original) for name, text in bare.items()}
    _drop_tied_positions(result)
    refuse_collisions(result)
    return result


def from_adapter(name: str) -> str | None:
    """This model's name for a tensor in PEFT's files for any LLaVA or LLaMA; None: not one."""
    return _target(from_peft(name), original_sam=False)


def _target(name: str, original_sam: bool) -> str | None:
    part = _without_lisa(name)
    if SAM_PARTS.match(part):
        return "sam." + (every_step(part, ORIGINAL_SAM) if original_sam else part)
    return first_rule(name, RULES)


def _without_lisa(name: str) -> str:
    return name.removeprefix(LISA_SAM_PREFIX)


def _is_original(names: list[str]) -> bool:
    """Whether SAM's tensors have the names of the original code. Raises NamesError on a mixture."""
    original = next(filter(ORIGINAL_MARK.search, names), None)
    transformers = next(filter(TRANSFORMERS_MARK.search, names), None)
    if original and transformers:
        raise NamesError(
            f"SAM's tensors are named in two ways: {original} as in the original code, "
            f"{transformers} as in transformers; keep one of the two in the folder"
        )
    return transformers is None


def _drop_tied_positions(targets: dict[str, str | None]) -> None:
    """transformers may save SAM's position matrix twice: one tensor, known by two names."""
    tied = "sam.prompt_encoder.shared_embedding.positional_embedding"
    others = SAM_POSITIONS in targets.values()
    for name, target in targets.items():
        if target == tied:
            targets[name] = None if others else SAM_POSITIONS
