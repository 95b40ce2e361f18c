"""Qwen3-VL answers, and the hidden state of [SEG] prompts SAM 2's mask decoder.

Built on transformers' own Qwen3-VL and SAM 2 modules.

Shapes: as the frame's; N tokens of all pictures, G side of SAM 2's coarsest level, L = 4·G.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Sam2Config, Sam2Model

from profiles.families import MASK, VISION
from profiles.families.qwen3_sam2 import Profile
from profiles.settings import Encoder
from trainer.batch import Batch
from trainer.model.families.qwen3_sam2.positions import later_by, positions
from trainer.model.families.qwen3_sam2.vision import MaskEncoder, see
from trainer.model.sam_prompts import decoder_inputs
from trainer.model.segmentation_model import Features, SegmentationModel

_CANDIDATES = "sam.mask_decoder.output_hypernetworks_mlps."


class QwenSam2(SegmentationModel):
    """Qwen3-VL, SAM 2, and the layers between them."""

    decoder_at = "qwen.model.language_model"
    head_at = "qwen.lm_head"
    adapted_at = "qwen"
    encoders_at = {VISION: "qwen.model.visual", MASK: "mask_encoder"}  # noqa: RUF012
    parts_at = {  # noqa: RUF012
        "mask_decoder": ("sam.mask_decoder.",),
        "text_hidden_fcs": ("text_hidden_fcs.",),
    }
    of_masks = ("mask_decoder", "text_hidden_fcs")
    one_with = {"sam.prompt_encoder.shared_embedding": "sam.shared_image_embedding"}  # noqa: RUF012

    def __init__(
        self, profile: Profile, qwen: Qwen3VLConfig, sam: Sam2Config, seg_token_id: int
    ) -> None:
        super().__init__(profile, seg_token_id)
        hidden, channels = profile.decoder.hidden, profile.sam.channels
        self.qwen = Qwen3VLForConditionalGeneration(qwen)
        self.sam = Sam2Model(sam)
        self.mask_encoder = MaskEncoder(self.sam)
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        # Of one mask the first candidate is taken, of three the others. No loss reads the scores.
        several = profile.prompting.masks > 1
        chosen = tuple(f"{_CANDIDATES}{n}." for n in ((1, 2, 3) if several else (0,)))
        others = tuple(f"{_CANDIDATES}{n}." for n in ((0,) if several else (1, 2, 3)))
        scores = ("iou_prediction_head.", "pred_obj_score_head.")
        self.unread = (*others, *(f"sam.mask_decoder.{name}" for name in scores))
        self.in_turn = chosen if several else ()
        self.plan_layers(checkpointed=0, compiled=False)

    def encode(self, encoder: Encoder, pixels: Features) -> dict[str, Tensor]:
        """Qwen's features of the pictures and their grids, or SAM 2's levels."""
        if encoder == MASK:
            levels: dict[str, Tensor] = self.mask_encoder(pixels["pixels"])
            return levels
        tower, grids = self.qwen.model.visual, pixels["grid"]
        sizes: list[list[int]] = grids.tolist()
        counts = [down * across * tower.spatial_merge_unit for down, across in sizes]
        pictures = zip(pixels["patches"].split(counts), sizes, strict=True)
        seen = [see(tower, patches, *size) for patches, size in pictures]
        return {name: torch.cat([one[name] for one in seen]) for name in seen[0]} | {"grid": grids}

    def _image_places(self, input_ids: Tensor) -> Tensor:
        return input_ids == self.qwen.config.image_token_id

    def embed(self, input_ids: Tensor, seen: Features) -> Tensor:
        """Token embeddings [B, T, H] with the pictures' features in place of their tokens."""
        embeddings = self.embedding(input_ids).to(self.dtype)
        places = self._image_places(input_ids)[..., None]
        filled: Tensor = embeddings.masked_scatter(places, seen["features"].to(self.dtype))
        return filled

    def layer_inputs(self, input_ids: Tensor, seen: Features) -> Mapping[int, Tensor]:
        """Deepstack: features of earlier vision layers behind the first decoder layers."""
        places = self._image_places(input_ids)[..., None]
        empty = torch.zeros(
            *input_ids.shape, seen["deep"].shape[-1], dtype=self.dtype, device=input_ids.device
        )
        taps = seen["deep"].to(self.dtype).unbind(1)
        return {number: empty.masked_scatter(places, tap) for number, tap in enumerate(taps)}

    def positions(self, batch: Batch, start: int, count: int) -> Tensor:
        """Qwen's 3-D positions [3, B, count]."""
        ids = batch.input_ids
        grids = batch.inputs[VISION]["grid"].to(ids.device)
        if start == 0:
            return positions(self._image_places(ids), grids)[..., :count]
        later = torch.arange(start, start + count, device=ids.device) + later_by(grids)
        return later.expand(3, -1, -1)

    def prompts_of(self, states: Tensor) -> Tensor:
        """States [M, H] of a [SEG] -> prompts [M, k, E]: SAM 2's padding points, and the state."""
        prompts: Tensor = self.computed(self.text_hidden_fcs)(states)
        padding = self.sam.prompt_encoder.not_a_point_embed.weight.to(prompts.dtype)
        count = self.prompting.padding_points
        return torch.cat([padding.expand(len(prompts), count, -1), prompts[:, None]], 1)

    def decode(self, prompts: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """Candidates [M, c, L, L] and their scores [M, c] on SAM 2's levels."""
        logits, scores, *_ = self.computed(self.sam.mask_decoder)(
            **decoder_inputs(self.sam, prompts, features["coarse"]),
            multimask_output=self.prompting.masks > 1,
            high_resolution_features=[features[n].to(prompts.dtype) for n in ("fine", "middle")],
        )
        return logits[:, 0], scores[:, 0]
