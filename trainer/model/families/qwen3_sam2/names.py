"""Names of published checkpoints -> this model's names. Names alone: no tensor is looked at.

Known: transformers' Qwen3-VL and SAM 2; Sa2VA, whose SAM 2 has the names of the original code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.model.published_names import (
    every_step,
    first_rule,
    refuse_adapters,
    refuse_collisions,
)

QWEN, SAM, ENCODER = "qwen.model.", "sam.", "mask_encoder."
ORIGINAL = "grounding_encoder.sam2_model."  # before SAM 2's names in Sa2VA

# The first that fits the whole name wins.
RULES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"(?:model\.)*lm_head\.(.+)", r"qwen.lm_head.\1"),
        (r"(?:model\.)*visual\.(.+)", rf"{QWEN}visual.\1"),
        (r"(?:model\.)*language_model\.((?:embed_tokens|layers|norm)\..+)",
         rf"{QWEN}language_model.\1"),
        (r"(?:model\.)?text_hidden_fcs\.(?:0\.)?([02])\.(weight|bias)", r"text_hidden_fcs.\1.\2"),
    )
)  # fmt: skip
# SAM 2's other parts are its video model's memory, and its prompts of points and masks.
PARTS = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"mask_decoder\.(conv_s[01]\..+)", rf"{ENCODER}\1"),
        (r"(mask_decoder\..+)", rf"{SAM}\1"),
        (r"(vision_encoder\..+|no_memory_embedding)", rf"{ENCODER}\1"),
        (r"(prompt_encoder\.(?:not_a_point_embed|no_mask_embed)\..+)", rf"{SAM}\1"),
        (r"(shared_image_embedding\..+)", rf"{SAM}\1"),
    )
)
# From the original SAM 2, part by part; every step that fits is taken.
STEPS = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
         "shared_image_embedding.positional_embedding"),
        (r"^image_encoder\.trunk\.patch_embed\.proj\.",
         "vision_encoder.backbone.patch_embed.projection."),
        (r"^(image_encoder\.trunk\.blocks\.\d+)\.norm([12])\.", r"\1.layer_norm\2."),
        (r"^(image_encoder\.trunk\.blocks\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
        (r"^(image_encoder\.trunk\.blocks\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.(neck\.convs\.\d+)\.conv\.", r"vision_encoder.\1."),
        (r"^(mask_decoder\.transformer\..+)\.out_proj\.", r"\1.o_proj."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2."),
        (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
        (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
        (r"^(mask_decoder\.transformer)\.norm_final_attn\.", r"\1.layer_norm_final_attn."),
        (r"^(mask_decoder)\.output_upscaling\.0\.", r"\1.upscale_conv1."),
        (r"^(mask_decoder)\.output_upscaling\.1\.", r"\1.upscale_layer_norm."),
        (r"^(mask_decoder)\.output_upscaling\.3\.", r"\1.upscale_conv2."),
        (r"^(mask_decoder\.(?!transformer).+)\.layers\.0\.", r"\1.proj_in."),
        (r"^(mask_decoder\.(?!transformer).+)\.layers\.1\.", r"\1.layers.0."),
        (r"^(mask_decoder\.(?!transformer).+)\.layers\.2\.", r"\1.proj_out."),
    )
)  # fmt: skip
# What only the original names have: `layers.0` of a small network means another layer in each.
ORIGINAL_MARK = re.compile(r"(?:image_encoder|sam_prompt_encoder|sam_mask_decoder)\.")


def target_names(names: Iterable[str]) -> dict[str, str | None]:
    """Each name of one checkpoint -> the model's name for that tensor; None: of no use here.

    Raises NamesError where two tensors would be one, or adapters are still apart.
    """
    names = sorted(names)
    refuse_adapters(names, "")
    result = {name: target_of(name) for name in names}
    refuse_collisions(result)
    return result


def target_of(name: str) -> str | None:
    """The model's name for one tensor of a checkpoint; None: of no use here."""
    if (known := first_rule(name, RULES)) is not None:
        return known
    part = name.removeprefix(ORIGINAL)
    if part != name or ORIGINAL_MARK.match(part) or part == "no_mem_embed":
        part = every_step(part, STEPS)
    return first_rule(part, PARTS)
