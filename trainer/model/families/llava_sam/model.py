"""LISA: LLaVA answers, and the hidden state that predicts [SEG] prompts SAM's mask decoder.

Built on transformers' own LLaVA and SAM modules (Lai et al. 2023, arXiv:2308.00692).

Shapes: as the frame's, N image tokens, C CLIP channels, G side of SAM's image embedding, E its
channels, L = 4·G.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, SamConfig, SamModel

from profiles.families import MASK, VISION
from profiles.families.llava_sam import Profile
from profiles.settings import Encoder
from trainer.model.families.llava_sam.names import from_adapter
from trainer.model.sam_prompts import decoder_inputs
from trainer.model.segmentation_model import Features, SegmentationModel


class OneLayerProjector(nn.Module):
    """LLaVA-v1's projector: one linear layer from CLIP's to LLaMA's width."""

    def __init__(self, clip_channels: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(clip_channels, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, H]."""
        projected: Tensor = self.linear(features)
        return projected


class Lisa(SegmentationModel):
    """LLaVA, SAM, and the layers between them."""

    decoder_at = "llava.model.language_model"
    head_at = "llava.lm_head"
    adapted_at = "llava"
    encoders_at = {VISION: "llava.model.vision_tower", MASK: "sam.vision_encoder"}  # noqa: RUF012
    parts_at = {  # noqa: RUF012
        "mask_decoder": ("sam.mask_decoder.",),
        "text_hidden_fcs": ("text_hidden_fcs.",),
        "projector": ("llava.model.multi_modal_projector.",),
    }
    of_masks = ("mask_decoder", "text_hidden_fcs")
    # With multimask_output=False only the first mask token's hypernetwork is read, and no loss
    # reads the predicted IoU.
    unread = (
        "sam.mask_decoder.iou_prediction_head.",
        "sam.mask_decoder.output_hypernetworks_mlps.1.",
        "sam.mask_decoder.output_hypernetworks_mlps.2.",
        "sam.mask_decoder.output_hypernetworks_mlps.3.",
    )
    one_with = {"sam.prompt_encoder.shared_embedding": "sam.shared_image_embedding"}  # noqa: RUF012

    def __init__(
        self,
        profile: Profile,
        llava: LlavaConfig,
        sam: SamConfig,
        seg_token_id: int,
    ) -> None:
        super().__init__(profile, seg_token_id)
        hidden = llava.text_config.hidden_size
        self.llava = LlavaForConditionalGeneration(llava)
        if profile.projector_layers == 1:
            self.llava.model.multi_modal_projector = OneLayerProjector(
                llava.vision_config.hidden_size, hidden
            )
        self.sam = SamModel(sam)
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, sam.prompt_encoder_config.hidden_size),
            nn.Dropout(0.0),
        )
        self.plan_layers(checkpointed=0, compiled=False)

    @classmethod
    def from_adapter(cls, name: str) -> str | None:
        """The model's name for a tensor of an adapter for any LLaVA or LLaMA."""
        return from_adapter(name)

    @property
    def projector(self) -> nn.Module:
        """CLIP's channels -> LLaMA's."""
        part: nn.Module = self.llava.model.multi_modal_projector
        return part

    def encode(self, encoder: Encoder, pixels: Features) -> dict[str, Tensor]:
        """CLIP's hidden layer −2 without the class token [B, N, C], or SAM's image embedding
        [B, E, G, G]."""
        if encoder == VISION:
            output = self.llava.model.vision_tower(pixels["pixels"], output_hidden_states=True)
            return {"features": output.hidden_states[-2][:, 1:]}
        return {"features": self.sam.vision_encoder(pixels["pixels"])[0]}

    def embed(self, input_ids: Tensor, seen: Features) -> Tensor:
        """Token embeddings [B, T, H] with the projected picture laid over its image tokens."""
        embeddings = self.embedding(input_ids).to(self.dtype)
        image = self.computed(self.projector)(seen["features"].to(self.dtype))
        places = (input_ids == self.llava.config.image_token_index)[..., None]
        filled: Tensor = embeddings.masked_scatter(places, image)
        return filled

    def prompts_of(self, states: Tensor) -> Tensor:
        """States [M, H] that predict a [SEG] -> prompts [M, 1, E] for SAM's mask decoder."""
        prompts: Tensor = self.computed(self.text_hidden_fcs)(states)
        return prompts[:, None, :]

    def decode(self, prompts: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """One candidate [M, 1, L, L] and its score [M, 1] on SAM's features [M, E, G, G]."""
        given = decoder_inputs(self.sam, prompts, features["features"])
        decoder = self.computed(self.sam.mask_decoder)
        logits, scores = decoder(**given, multimask_output=False)
        return logits[:, 0], scores[:, 0]
