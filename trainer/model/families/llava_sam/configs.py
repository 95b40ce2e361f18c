"""A profile as transformers' configs."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig, SamVisionConfig
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig

from profiles.families.llava_sam import Profile
from trainer.model.copied import copied


@copied
def llava_config(profile: Profile, image_token_id: int, pad_token_id: int) -> LlavaConfig:
    """LLaVA's config: CLIP's hidden layer −2, class token dropped."""
    llama, clip = profile.decoder, profile.clip
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=clip.hidden,
            intermediate_size=clip.intermediate,
            num_hidden_layers=clip.layers,
            num_attention_heads=clip.heads,
            image_size=clip.image_pixels,
            patch_size=clip.patch_pixels,
            projection_dim=clip.hidden,
        ),
        text_config=LlamaConfig(
            hidden_size=llama.hidden,
            intermediate_size=llama.intermediate,
            num_hidden_layers=llama.layers,
            num_attention_heads=llama.heads,
            num_key_value_heads=llama.key_heads or llama.heads,
            head_dim=llama.head_channels,
            vocab_size=profile.vocabulary_rows,
            rms_norm_eps=llama.norm_eps,
            max_position_embeddings=4096,
            pad_token_id=pad_token_id,
            tie_word_embeddings=False,
        ),
        image_token_index=image_token_id,
        image_seq_length=clip.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


@copied
def sam_config(profile: Profile) -> SamConfig:
    """SAM's config; the decoder's width is the image embedding's."""
    sam = profile.sam
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=sam.hidden,
            output_channels=sam.output_channels,
            num_hidden_layers=sam.layers,
            num_attention_heads=sam.heads,
            image_size=sam.image_pixels,
            patch_size=sam.patch_pixels,
            window_size=sam.window_patches,
            global_attn_indexes=list(sam.global_layers),
            num_pos_feats=sam.output_channels // 2,
            mlp_dim=sam.intermediate,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=sam.output_channels,
            image_size=sam.image_pixels,
            patch_size=sam.patch_pixels,
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=sam.output_channels,
            mlp_dim=sam.decoder_intermediate,
            iou_head_hidden_dim=sam.output_channels,
        ),
    )
