"""The toy's parts, and the hooks by which the frame runs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from profiles.families import MASK, VISION
from trainer.model.segmentation_model import SegmentationModel


class Rotary(nn.Module):
    """Every third channel turns by another of the three axes of a position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        pace = 100.0 ** -(torch.arange(channels // 2) * 2 / channels)
        self.register_buffer("pace", pace, persistent=False)
        self.register_buffer("axis", torch.arange(channels // 2) % 3, persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [3, B, T] -> cosine and sine [B, T, channels]."""
        angle = positions.float().permute(1, 2, 0)[..., self.axis] * self.pace
        angle = torch.cat([angle, angle], -1)
        return angle.cos().to(hidden.dtype), angle.sin().to(hidden.dtype)


class Widening(nn.Module):
    """The gated MLP, under names of its own."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.widen = nn.Linear(hidden, inner, bias=False)
        self.narrow = nn.Linear(inner, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.narrow(nn.functional.silu(self.gate(hidden)) * self.widen(hidden))


class Decoder(nn.Module):
    def __init__(self, profile) -> None:
        super().__init__()
        shape = profile.decoder
        config = Qwen2Config(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            head_dim=shape.head_channels,
            vocab_size=profile.vocabulary_rows,
        )
        config._attn_implementation = "sdpa"
        self.embed_tokens = nn.Embedding(profile.vocabulary_rows, shape.hidden)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, n) for n in range(shape.layers))
        for layer in self.layers:
            layer.mlp = Widening(shape.hidden, shape.intermediate)
        self.norm = Qwen2RMSNorm(shape.hidden)
        self.rotary_emb = Rotary(shape.head_channels)


class Language(nn.Module):
    def __init__(self, profile) -> None:
        super().__init__()
        self.text = Decoder(profile)
        self.out = nn.Linear(profile.decoder.hidden, profile.vocabulary_rows, bias=False)


class MaskDecoder(nn.Module):
    """Two prompt tokens -> three masks and their scores."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 4, 2, 2)
        self.hyper = nn.Linear(2 * channels, 3 * channels // 4)
        self.score = nn.Linear(2 * channels, 3)

    def forward(self, prompts: Tensor, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        told = prompts.flatten(1)
        weights = self.hyper(told).unflatten(1, (3, -1))
        return torch.einsum("mkc,mchw->mkhw", weights, self.up(coarse) + fine), self.score(told)


class Toy(SegmentationModel):
    decoder_at = "language.text"
    head_at = "language.out"
    adapted_at = "language"
    targets = {  # noqa: RUF012
        "qv": ("self_attn.q_proj", "self_attn.v_proj"),
        "attention": tuple(f"self_attn.{name}_proj" for name in "qkvo"),
        "all-linear": (
            *(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate", "mlp.widen", "mlp.narrow",
        ),
    }  # fmt: skip
    encoders_at = {VISION: "eye", MASK: "mask_eye"}  # noqa: RUF012
    parts_at = {  # noqa: RUF012
        "mask_decoder": ("mask_decoder.",),
        "text_hidden_fcs": ("to_prompts.",),
        "projector": ("projector.",),
    }
    of_masks = ("mask_decoder", "text_hidden_fcs")
    unread = ("mask_decoder.score.",)

    def __init__(self, profile, image_id: int, seg_id: int) -> None:
        super().__init__(profile, seg_id)
        hidden, c, e = profile.decoder.hidden, profile.channels, profile.mask_channels
        self.image_id = image_id
        self.language = Language(profile)
        self.eye = nn.ModuleDict({"first": nn.Linear(192, c), "deep": nn.Linear(192, c)})
        self.projector = nn.Linear(c, hidden)
        self.deepers = nn.ModuleList(nn.Linear(c, hidden) for _ in range(profile.decoder.layers))
        self.mask_eye = nn.ModuleDict(
            {"coarse": nn.Conv2d(3, e, 8, 8), "fine": nn.Conv2d(3, e // 4, 4, 4)}
        )
        self.to_prompts = nn.Linear(hidden, 2 * e)
        self.mask_decoder = MaskDecoder(e)
        self.plan_layers(checkpointed=0, compiled=False)

    def encode(self, encoder, pixels):
        if encoder == VISION:
            seen = {"features": self.eye["first"], "deep": self.eye["deep"]}
            made = {name: look(pixels["patches"]) for name, look in seen.items()}
            return {**made, "grid": pixels["grid"]}
        return {name: look(pixels["pixels"]) for name, look in self.mask_eye.items()}

    def embed(self, input_ids, seen):
        embeddings = self.embedding(input_ids).to(self.dtype)
        image = self.computed(self.projector)(seen["features"].to(self.dtype))
        return embeddings.masked_scatter((input_ids == self.image_id)[..., None], image)

    def layer_inputs(self, input_ids, seen):
        places = (input_ids == self.image_id)[..., None]
        given = {}
        for number, layer in enumerate(self.deepers):
            added = self.computed(layer)(seen["deep"].to(self.dtype))
            empty = added.new_zeros(*input_ids.shape, added.shape[-1])
            given[number] = empty.masked_scatter(places, added)
        return given

    def positions(self, batch, start, count):
        """[3, B, count]: a picture's patches differ in the second and third axis; text goes on
        behind the picture's longer side."""
        ids = batch.input_ids
        image = (ids == self.image_id).long()
        down, across = batch.inputs[VISION]["grid"].to(ids.device).unbind(1)
        longest = torch.maximum(down, across)[:, None]
        tokens = image.sum(1, keepdim=True)
        place = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        inside = image.cumsum(1) - 1
        begin = place - inside
        text = torch.where(inside >= tokens - 1, place - tokens + longest, place)
        row, column = inside // across[:, None], inside % across[:, None]
        axes = [torch.where(image > 0, begin + part, text) for part in (0, row, column)]
        if start == 0:
            return torch.stack(axes)
        later = torch.arange(start, start + count, device=ids.device)[None] - tokens + longest
        return later.expand(3, -1, -1)

    def prompts_of(self, states):
        return self.computed(self.to_prompts)(states).unflatten(1, (2, -1))

    def decode(self, prompts, features):
        coarse, fine = (features[name].to(prompts.dtype) for name in ("coarse", "fine"))
        return self.computed(self.mask_decoder)(prompts, coarse, fine)
