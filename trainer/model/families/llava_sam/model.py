"""LISA: LLaVA answers, and the hidden state that predicts [SEG] prompts SAM's mask decoder.

Built on transformers' own LLaVA and SAM modules (Lai et al. 2023, arXiv:2308.00692).

Shapes: B samples, T text-and-image positions, N image tokens, C CLIP channels, H hidden channels,
M masks in the batch (all [SEG] of all samples, in order), n supervised positions, G side of SAM's
image embedding, E its channels, L = 4·G side of the low-resolution logits, R of the mask loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration, SamConfig, SamModel

from trainer.batch import Batch
from trainer.frame import inner_size
from trainer.losses import (
    LossSums,
    cross_entropy_sum,
    mask_bce_per_mask,
    mask_dice_per_mask,
)
from trainer.model.layers.decoder import (
    KeyValues,
    RunLayer,
    as_it_is,
    compiled_layer,
    recompute_layer,
    run_layer,
)
from trainer.model.layers.host import Gate, HostHead, HostLayers, stored_tensors


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
        self.dtype = torch.float32  # of the frozen weights and the activations
        self.runs: list[RunLayer] = [run_layer] * len(self.decoder_layers)
        self.run_evaluating: RunLayer = run_layer
        self.host_layers: HostLayers | None = None
        self.host_numbers: dict[int, int] = {}  # decoder layer -> its number in `host_layers`

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
        if "vision" in cached:
            self.llava.model.vision_tower = None
        if "mask" in cached:
            self.sam.vision_encoder = None

    def on_card(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all that stays on the card; of host layers, their two buffers."""
        lent = {
            id(getattr(owner, name))
            for index in self.host_numbers
            for owner, name in stored_tensors(self.decoder_layers[index])
        }
        if self.host_layers is not None:
            yield from (("host_layers.buffers", buffer) for buffer in self.host_layers.buffers)
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            # Adapters are linears of a host layer too, and stay on the card.
            if tensor.requires_grad or id(tensor) not in lent:
                yield name, tensor

    def plan_layers(self, checkpointed: int, compiled: bool) -> None:
        """Recompute the first `checkpointed` decoder layers in the backward pass; compile all."""
        # Compiled with the recomputation inside, the backward graph leaves out what it needs not.
        wrap: Callable[[RunLayer], RunLayer] = compiled_layer if compiled else as_it_is
        recompute, run = wrap(recompute_layer), wrap(run_layer)
        self.runs = [
            recompute if index < checkpointed else run for index in range(len(self.decoder_layers))
        ]

    def computed(self, module: nn.Module) -> Callable[..., Any]:
        """`module` computing in the model's dtype, whatever its trained tensors are kept in."""
        if self.dtype == torch.float32:
            return module
        # Written out, where autocast would choose operator by operator and device by device: the
        # step is then the same arithmetic on every device, and can be rehearsed on any.
        cast = {name: tensor.to(self.dtype) for name, tensor in module.named_parameters()}
        return lambda *inputs, **named: functional_call(module, cast, inputs, named)

    def clip_features(self, clip: Tensor) -> Tensor:
        """Pixels [B, 3, P, P] -> hidden layer −2 without the class token [B, N, C]."""
        if clip.dim() == 3:
            return clip
        with torch.no_grad():
            output = self.llava.model.vision_tower(clip.to(self.dtype), output_hidden_states=True)
        features: Tensor = output.hidden_states[-2][:, 1:]
        return features

    def sam_features(self, sam: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] -> SAM's image embedding [B, E, G, G]; features pass through."""
        if self.sam.vision_encoder is None or sam.shape[1] != 3:
            return sam
        with torch.no_grad():
            features: Tensor = self.sam.vision_encoder(sam.to(self.dtype))[0]
        return features

    def embed(self, input_ids: Tensor, clip: Tensor) -> Tensor:
        """Token embeddings [B, T, H] with the projected picture laid over its image tokens."""
        embeddings = self.llava.get_input_embeddings()(input_ids).to(self.dtype)
        image = self.computed(self.projector)(self.clip_features(clip).to(self.dtype))
        places = (input_ids == self.llava.config.image_token_index)[..., None]
        filled: Tensor = embeddings.masked_scatter(places, image)
        return filled

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last-layer hidden states [B, T, H]; those of padding mean nothing."""
        learning = self.training and torch.is_grad_enabled()

        def run(index: int) -> RunLayer:
            return self.runs[index] if learning else self.run_evaluating

        return self._through_layers(self.embed(batch.input_ids, batch.clip), 0, run)

    def _through_layers(self, hidden: Tensor, start: int, run: Callable[[int], RunLayer]) -> Tensor:
        """Embeddings [B, T, H] of positions `start` on -> last-layer states, by `run(index)`."""
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
        rope = self.decoder.rotary_emb(hidden, positions)  # type: ignore[operator]
        for index, layer in enumerate(self.decoder_layers):
            number = self.host_numbers.get(index)
            if number is None or self.host_layers is None:
                hidden = run(index)(layer, hidden, rope)
                continue
            self.host_layers.fetch(number, 1)
            hidden = Gate.apply(run(index)(layer, hidden, rope), self.host_layers, number)
        states: Tensor = self.decoder.norm(hidden)  # type: ignore[operator]
        return states

    def decode_masks(self, states: Tensor, segs: Tensor, sam: Tensor) -> Tensor:
        """Low-resolution mask logits [M, L, L] from the state before each [SEG]."""
        count = len(segs)
        # SAM's decoder cannot run on nothing. One made-up prompt, cut off below, stands in: the
        # trained tensors stay in the graph, with zero gradients, as data-parallel wrappers need.
        owner, position = (segs if count else segs.new_zeros(1, 2)).unbind(1)
        # The state that predicts a token stands one position before it.
        prompts = self.prompts_of(states[owner, position - 1])
        return self.masks_of(prompts, self.sam_features(sam)[owner])[:count]

    def prompts_of(self, states: Tensor) -> Tensor:
        """States [M, H] that predict a [SEG] -> prompts [M, 1, 1, E] for SAM's mask decoder."""
        prompts: Tensor = self.computed(self.text_hidden_fcs)(states)
        return prompts[:, None, None, :]

    def masks_of(self, prompts: Tensor, image: Tensor) -> Tensor:
        """Low-resolution mask logits [M, L, L] of prompts on SAM's features [M, E, G, G]."""
        dense = self.sam.prompt_encoder.no_mask_embed.weight[0].view(1, -1, 1, 1)
        logits, _ = self.computed(self.sam.mask_decoder)(
            image_embeddings=image.to(prompts.dtype),
            image_positional_embeddings=self._positions(len(prompts)).to(prompts.dtype),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=dense.to(prompts.dtype).expand_as(image),
            multimask_output=False,
        )
        masks: Tensor = logits[:, 0, 0]
        return masks

    def _positions(self, count: int) -> Tensor:
        grid: Tensor = self.sam.get_image_wide_positional_embeddings()
        return grid.expand(count, -1, -1, -1)

    def answer_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy summed over the supervised positions, in nats."""
        owner, position = batch.predicting.unbind(1)
        head = self.llava.lm_head
        if isinstance(head, HostHead):
            return head.cross_entropy_sum(states[owner, position], batch.answers)
        compute = self.computed(head)
        if self.logits_at == "supervised":
            return cross_entropy_sum(compute(states[owner, position]), batch.answers)
        return cross_entropy_sum(compute(states)[owner, position], batch.answers)

    def forward(self, batch: Batch) -> LossSums:
        """The batch's loss sums; the caller divides them by the effective batch's totals."""
        states = self.hidden_states(batch)
        masks = self.decode_masks(states, batch.segs, batch.sam)
        side = batch.targets.shape[-1]
        if masks.shape[-1] != side:
            masks = functional.interpolate(
                masks[:, None].float(), size=(side, side), mode="bilinear", align_corners=False
            )[:, 0]
        return LossSums(
            ce=self.answer_loss(states, batch),
            bce=mask_bce_per_mask(masks, batch.targets).sum(),
            dice=mask_dice_per_mask(masks, batch.targets).sum(),
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Low-resolution mask logits [M, L, L] fp32 for a teacher-forced batch."""
        states = self.hidden_states(batch)
        return self.decode_masks(states, batch.segs, batch.sam).float()

    @torch.no_grad()
    def answer(self, batch: Batch, most: int, end_id: int) -> tuple[Tensor, list[Tensor]]:
        """Greedy answer of ONE sample: at most `most` token ids [n], and [L, L] logits a [SEG]."""
        image = self.sam_features(batch.sam)
        new, masks = [], []
        for token, state in self.greedy(batch, most):
            new.append(int(token))
            if new[-1] == self.seg_token_id:
                masks.append(self.masks_of(self.prompts_of(state), image)[0].float())
            if new[-1] == end_id:
                break
        return torch.tensor(new), masks

    def greedy(self, batch: Batch, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The likeliest next token [1] and the state [1, H] that predicts it, again and again."""
        kept = KeyValues(batch.input_ids.shape[1] + most)
        hidden, start = self.embed(batch.input_ids, batch.clip), 0
        head = self.computed(self.llava.lm_head)
        for _ in range(most):
            state = self._through_layers(hidden, start, lambda index: kept.run_layer)[:, -1]
            token = head(state).argmax(-1)
            yield token, state
            start += hidden.shape[1]
            hidden = self.llava.get_input_embeddings()(token[:, None]).to(self.dtype)


def to_original(logits: Tensor, frame: int, height: int, width: int) -> Tensor:
    """Low-resolution logits [M, L, L] -> [M, height, width] at the picture's own size.

    The way back through SAM's frame: up to `frame`², crop the padding, resize (Kirillov et al.
    2023, arXiv:2304.02643, `postprocess_masks`).
    """
    inner = inner_size(height, width, frame)
    resize = partial(functional.interpolate, mode="bilinear", align_corners=False)
    framed = resize(logits[:, None].float(), size=(frame, frame))
    return resize(framed[..., : inner[0], : inner[1]], size=(height, width))[:, 0]
