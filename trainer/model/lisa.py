"""LISA: LLaVA answers, and the hidden state that predicts [SEG] prompts SAM's mask decoder.

Built on transformers' own LLaVA and SAM modules (Lai et al. 2023, arXiv:2308.00692).

Shapes: B samples, T text-and-image positions, N image tokens, C CLIP channels, H hidden channels,
M masks in the batch (all [SEG] of all samples, in order), G side of SAM's image embedding,
E its channels, L = 4·G side of the low-resolution logits, R side of the mask loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import LlavaConfig, LlavaForConditionalGeneration, SamConfig, SamModel

from trainer.losses import LossSums, cross_entropy_sum, mask_bce_per_mask, mask_dice_per_mask

IGNORED_LABEL = -100


@dataclass
class Batch:
    """Right-padded samples. Each encoder's input is its features where cached, else pixels."""

    input_ids: Tensor  # [B, T] int64, each image as N image tokens
    attention_mask: Tensor  # [B, T] int64, 1 on real positions
    labels: Tensor  # [B, T] int64, IGNORED_LABEL where nothing is supervised
    targets: Tensor  # [M, R, R] uint8: 0 background, 1 object, 255 ignored
    clip: Tensor  # [B, N, C] features or [B, 3, P, P] pixels
    sam: Tensor  # [B, E, G, G] features or [B, 3, S, S] pixels
    names: tuple[str, ...] = ()  # of the samples, for error messages

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for f in fields(self)
            for value in [getattr(self, f.name)]
        }
        return Batch(**moved)


class OneLayerProjector(nn.Module):
    """LLaVA-v1's projector: one linear layer from CLIP's to LLaMA's width."""

    def __init__(self, clip_channels: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(clip_channels, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, H]."""
        projected: Tensor = self.linear(features)
        return projected


class Lisa(nn.Module):
    """The model; a cached encoder is absent (`drop_encoders`)."""

    def __init__(
        self, llava: LlavaConfig, sam: SamConfig, seg_token_id: int, projector_layers: int
    ) -> None:
        super().__init__()
        hidden = llava.text_config.hidden_size
        self.seg_token_id = seg_token_id
        self.llava = LlavaForConditionalGeneration(llava)
        if projector_layers == 1:
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
        self.logits_at: Literal["supervised", "all"] = "supervised"

    # The parts that plans speak of, wherever the libraries keep them.

    @property
    def decoder(self) -> nn.Module:
        """The LLaMA decoder without its head."""
        part: nn.Module = self.llava.model.language_model
        return part

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """LLaMA's decoder layers, first to last."""
        layers: nn.ModuleList = self.llava.model.language_model.layers
        return layers

    @property
    def projector(self) -> nn.Module:
        """CLIP's channels -> LLaMA's."""
        part: nn.Module = self.llava.model.multi_modal_projector
        return part

    def drop_encoders(self, cached: tuple[str, ...]) -> None:
        """Remove the encoders whose features come from the cache."""
        if "clip" in cached:
            self.llava.model.vision_tower = None
        if "sam" in cached:
            self.sam.vision_encoder = None

    def checkpoint_layers(self, count: int) -> None:
        """Recompute the activations of the first `count` decoder layers in the backward pass."""
        for index, layer in enumerate(self.decoder_layers):
            settings: Any = layer  # transformers keeps these two as plain attributes
            settings.gradient_checkpointing = index < count
            settings._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def clip_features(self, clip: Tensor) -> Tensor:
        """Pixels [B, 3, P, P] -> hidden layer −2 without the class token [B, N, C]."""
        if clip.dim() == 3:
            return clip
        with torch.no_grad():
            output = self.llava.model.vision_tower(clip, output_hidden_states=True)
        features: Tensor = output.hidden_states[-2][:, 1:]
        return features

    def sam_features(self, sam: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] -> SAM's image embedding [B, E, G, G]; features pass through."""
        if self.sam.vision_encoder is None or sam.shape[1] != 3:
            return sam
        with torch.no_grad():
            features: Tensor = self.sam.vision_encoder(sam)[0]
        return features

    def embed(self, input_ids: Tensor, clip: Tensor) -> Tensor:
        """Token embeddings [B, T, H] with the projected picture laid over its image tokens."""
        embeddings = self.llava.get_input_embeddings()(input_ids)
        weight = next(self.projector.parameters())
        image = self.projector(self.clip_features(clip).to(weight.dtype)).to(embeddings.dtype)
        places = (input_ids == self.llava.config.image_token_index)[..., None]
        filled: Tensor = embeddings.masked_scatter(places, image)
        return filled

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last-layer hidden states [B, T, H]."""
        output = self.decoder(
            inputs_embeds=self.embed(batch.input_ids, batch.clip),
            attention_mask=batch.attention_mask,
            use_cache=False,
        )
        states: Tensor = output.last_hidden_state
        return states

    def decode_masks(self, states: Tensor, input_ids: Tensor, sam: Tensor) -> Tensor:
        """Low-resolution mask logits [M, L, L] from the state before each [SEG]."""
        owner, position = (input_ids == self.seg_token_id).nonzero(as_tuple=True)
        # The state that predicts a token stands one position before it.
        prompts = self.text_hidden_fcs(states[owner, position - 1])[:, None, None, :]
        image = self.sam_features(sam)[owner]
        dense = self.sam.prompt_encoder.no_mask_embed.weight[0].view(1, -1, 1, 1)
        logits, _ = self.sam.mask_decoder(
            image_embeddings=image.to(prompts.dtype),
            image_positional_embeddings=self._positions(len(owner)).to(prompts.dtype),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=dense.to(prompts.dtype).expand_as(image),
            multimask_output=False,
        )
        masks: Tensor = logits[:, 0, 0]
        return masks

    def _positions(self, count: int) -> Tensor:
        grid: Tensor = self.sam.get_image_wide_positional_embeddings()
        return grid.expand(count, -1, -1, -1)

    def logits(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits [n, V] and their labels [n], n the supervised positions (or all)."""
        states, labels = states[:, :-1], labels[:, 1:]
        if self.logits_at == "supervised":
            places = labels != IGNORED_LABEL
            return self.llava.lm_head(states[places]), labels[places]
        logits = self.llava.lm_head(states).flatten(0, 1)
        labels = labels.flatten()
        places = labels != IGNORED_LABEL
        return logits[places], labels[places]

    def forward(self, batch: Batch) -> LossSums:
        """The batch's loss sums; the caller divides them by the effective batch's totals."""
        states = self.hidden_states(batch)
        logits, labels = self.logits(states, batch.labels)
        masks = self.decode_masks(states, batch.input_ids, batch.sam)
        side = batch.targets.shape[-1]
        if masks.shape[-1] != side:
            masks = functional.interpolate(
                masks[:, None].float(), size=(side, side), mode="bilinear", align_corners=False
            )[:, 0]
        return LossSums(
            ce=cross_entropy_sum(logits, labels),
            bce=mask_bce_per_mask(masks, batch.targets).sum(),
            dice=mask_dice_per_mask(masks, batch.targets).sum(),
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Low-resolution mask logits [M, L, L] fp32 for a teacher-forced batch."""
        states = self.hidden_states(batch)
        return self.decode_masks(states, batch.input_ids, batch.sam).float()

    @torch.no_grad()
    def answer(self, batch: Batch, max_new_tokens: int, **stop: Any) -> tuple[Tensor, Tensor]:
        """Greedy answer of ONE sample: its new token ids [n] and mask logits [M, L, L]."""
        new = self.llava.generate(
            inputs_embeds=self.embed(batch.input_ids, batch.clip),
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **stop,
        )[0]
        whole = torch.cat([batch.input_ids[0], new])[None]
        told = Batch(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            labels=torch.full_like(whole, IGNORED_LABEL),
            targets=batch.targets,
            clip=batch.clip,
            sam=batch.sam,
        )
        return new, self.predict(told)


def to_original(logits: Tensor, frame: int, height: int, width: int) -> Tensor:
    """Low-resolution logits [M, L, L] -> [M, height, width] at the picture's own size.

    The way back through SAM's frame: up to `frame`², crop the padding, resize (Kirillov et al.
    2023, arXiv:2304.02643, `postprocess_masks`).
    """
    scale = frame / max(height, width)
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    resize = partial(functional.interpolate, mode="bilinear", align_corners=False)
    framed = resize(logits[:, None].float(), size=(frame, frame))
    return resize(framed[..., : inner[0], : inner[1]], size=(height, width))[:, 0]
