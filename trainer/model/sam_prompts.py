"""The common part of prompting transformers' mask decoders of SAM and SAM 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def decoder_inputs(sam: Any, prompts: Tensor, image: Tensor) -> dict[str, Tensor]:
    """Prompts [M, k, E] on image embeddings [M, E, G, G], both in the prompts' dtype.

    `sam` is the whole model. There is no mask prompt, and the positions are those of its frame.
    """
    dense = sam.prompt_encoder.no_mask_embed.weight[0].view(1, -1, 1, 1)
    places = sam.get_image_wide_positional_embeddings()
    image = image.to(prompts.dtype)
    return {
        "image_embeddings": image,
        "image_positional_embeddings": places.to(prompts.dtype).expand_as(image),
        "sparse_prompt_embeddings": prompts[:, None],
        "dense_prompt_embeddings": dense.to(prompts.dtype).expand_as(image),
    }
