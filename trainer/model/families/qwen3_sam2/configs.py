"""A profile as transformers' configs."""

from __future__ import annotations

from transformers import Qwen3VLConfig, Sam2Config

from profiles.families.qwen3_sam2 import Profile
from trainer.model.copied import copied


@copied
def qwen_config(profile: Profile, image_token_id: int, pad_token_id: int | None) -> Qwen3VLConfig:
    """Qwen3-VL's config."""
    decoder, vision = profile.decoder, profile.vision
    return Qwen3VLConfig(
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.heads,
            "patch_size": vision.patch_pixels,
            "spatial_merge_size": vision.merged,
            "out_hidden_size": decoder.hidden,
            "num_position_embeddings": vision.table_side**2,
            "deepstack_visual_indexes": list(vision.taps),
        },
        text_config={
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.intermediate,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.key_heads or decoder.heads,
            "head_dim": decoder.head_channels or decoder.hidden // decoder.heads,
            "vocab_size": profile.vocabulary_rows,
            "rms_norm_eps": decoder.norm_eps,
            "pad_token_id": pad_token_id,
            "tie_word_embeddings": False,  # the frame ties them itself
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": profile.rope.theta,
                "mrope_section": list(profile.rope.sections),
                "mrope_interleaved": True,
            },
        },
        image_token_id=image_token_id,
        tie_word_embeddings=False,
    )


@copied
def sam_config(profile: Profile) -> Sam2Config:
    """SAM 2's config. One mask alone is always its first, stable or not."""
    sam = profile.sam
    return Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": sam.hidden[0],
                "num_attention_heads": sam.heads[0],
                "image_size": [sam.image_pixels] * 2,
                "blocks_per_stage": list(sam.blocks),
                "embed_dim_per_stage": list(sam.hidden),
                "num_attention_heads_per_stage": list(sam.heads),
                "window_size_per_stage": list(sam.windows),
                "global_attention_blocks": list(sam.global_blocks),
                "window_positional_embedding_background_size": list(sam.background),
            },
            "backbone_channel_list": list(reversed(sam.hidden)),
            "backbone_feature_sizes": [[side, side] for side in sam.levels],
            "fpn_hidden_size": sam.channels,
        },
        prompt_encoder_config={"hidden_size": sam.channels, "image_size": sam.image_pixels},
        mask_decoder_config={
            "hidden_size": sam.channels,
            "mlp_dim": sam.decoder_intermediate,
            "iou_head_hidden_dim": sam.channels,
            "dynamic_multimask_via_stability": False,
        },
    )
