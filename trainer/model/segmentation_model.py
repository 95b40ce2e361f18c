"""The frame that families fill: a language model answers, and the state of each [SEG] prompts a
mask decoder. Here is what all families share: how layers run, the losses, and answering.

Shapes: B samples, T text-and-image positions, H hidden channels, M masks in the batch (all [SEG]
of all samples, in order), k prompt tokens a mask, E channels of a prompt, c candidates a mask,
n supervised positions, L side of the low-resolution logits, R of the mask loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from profiles.families import MASK, VISION, ModelProfile
from profiles.settings import Encoder, LoraTargets, TrainedPart
from trainer.batch import Batch
from trainer.frame import Frame
from trainer.losses import (
    LossSums,
    cross_entropy_sum,
    mask_bce_per_mask,
    mask_dice_per_mask,
)
from trainer.model.adapter_names import from_peft
from trainer.model.layers.decoder import (
    Rope,
    RunLayer,
    as_it_is,
    attention_mask,
    compiled_layer,
    recompute_layer,
    run_layer,
)
from trainer.model.layers.host import Gate, HostHead, HostLayers, stored_tensors

Features = Mapping[str, Tensor]
_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")


class SegmentationModel(nn.Module, ABC):
    """A model of some family; a cached encoder is absent (`drop_encoders`).

    A family says where its libraries keep the parts: the decoder holds `embed_tokens`, `layers`,
    `norm` and `rotary_emb`, as transformers' decoders do.
    """

    decoder_at: ClassVar[str]  # the decoder without its head
    head_at: ClassVar[str]
    adapted_at: ClassVar[str]  # what PEFT wraps: the model that the decoder is part of
    # Linears of a decoder layer, as transformers' decoders in LLaMA's manner call them.
    targets: ClassVar[Mapping[LoraTargets, tuple[str, ...]]] = {
        "qv": (_ATTENTION[0], _ATTENTION[2]),
        "attention": _ATTENTION,
        "all-linear": (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    }
    encoders_at: ClassVar[Mapping[Encoder, str]]
    parts_at: ClassVar[Mapping[TrainedPart, tuple[str, ...]]]  # prefixes of the other trained parts
    of_masks: ClassVar[tuple[TrainedPart, ...]]  # parts that learn from masks alone
    # Prefixes in trained parts that no loss reaches: they are not trained.
    unread: tuple[str, ...] = ()
    one_with: ClassVar[Mapping[str, str]] = {}  # modules that are another one of the model
    # Prefixes of candidates: each step trains only the candidates that it chooses.
    in_turn: tuple[str, ...] = ()

    def __init__(self, profile: ModelProfile, seg_token_id: int) -> None:
        super().__init__()
        # One matrix with the embedding table, and one set of rows.
        self.tied_head = profile.decoder.tied_head
        self.frame = Frame.of(profile)
        self.prompting = profile.prompting
        self.seg_token_id = seg_token_id
        self.logits_at: Literal["supervised", "all"] = "supervised"
        self.dtype = torch.float32  # of the frozen weights and the activations
        self.cached: frozenset[Encoder] = frozenset()  # whose features a batch brings
        self.runs: list[RunLayer] = []
        self.run_evaluating: RunLayer = run_layer
        self.host_layers: HostLayers | None = None
        self.host_numbers: dict[int, int] = {}  # decoder layer -> its number in `host_layers`

    # What a family fills in.

    @abstractmethod
    def encode(self, encoder: Encoder, pixels: Features) -> dict[str, Tensor]:
        """A frozen encoder's features of pixels; both as the family's profile names them."""

    @abstractmethod
    def embed(self, input_ids: Tensor, seen: Features) -> Tensor:
        """Embeddings [B, T, H] with the picture's features laid over its image tokens."""

    @abstractmethod
    def prompts_of(self, states: Tensor) -> Tensor:
        """States [M, H] of [SEG] -> prompts [M, k, E] for the mask decoder."""

    @abstractmethod
    def decode(self, prompts: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """Candidates [M, c, L, L] as logits, and their scores [M, c], of prompts [M, k, E].

        The image features are the mask encoder's, one row a mask.
        """

    def layer_inputs(self, input_ids: Tensor, seen: Features) -> Mapping[int, Tensor]:
        """What is added to the states [B, T, H] behind some decoder layers, by their number."""
        del input_ids, seen
        return {}

    def positions(self, batch: Batch, start: int, count: int) -> Tensor:
        """Positions of `count` tokens from `start` on: [1, count], or whatever else the decoder's
        rotary embedding takes."""
        return torch.arange(start, start + count, device=batch.input_ids.device)[None]

    # The parts that plans speak of, wherever the libraries keep them.

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.get_submodule(self.decoder_at)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers, first to last."""
        layers: Any = self.decoder.layers
        return layers

    @property
    def embedding(self) -> nn.Module:
        """The embedding table."""
        table: Any = self.decoder.embed_tokens
        return table

    @property
    def head(self) -> nn.Module:
        """States [..., H] -> logits over the vocabulary."""
        return self.get_submodule(self.head_at)

    @classmethod
    def tables(cls) -> tuple[str, str]:
        """The names of the embedding table's and the head's weights."""
        return f"{cls.decoder_at}.embed_tokens.weight", f"{cls.head_at}.weight"

    def replace_tables(self, embedding: nn.Module, head: nn.Module) -> None:
        """Replace the embedding table and the head."""
        set_module(self, f"{self.decoder_at}.embed_tokens", embedding)
        set_module(self, self.head_at, head)

    @classmethod
    def from_adapter(cls, name: str) -> str | None:
        """This model's name of a tensor in PEFT's files; None: it has no such tensor."""
        return f"{cls.adapted_at}.{from_peft(name)}"

    @classmethod
    def prefixes_of(cls, part: TrainedPart) -> tuple[str, ...]:
        """Prefixes of the names of a part's tensors."""
        table, head = cls.tables()
        rows = tuple(f"{name.removesuffix('weight')}rows" for name in (table, head))
        known: dict[TrainedPart, tuple[str, ...]] = {
            "token_rows": rows, "head": (head,), "embeddings": (table, head)
        }  # fmt: skip
        return known.get(part) or cls.parts_at.get(part, ())

    def drop_encoders(self, cached: tuple[Encoder, ...]) -> None:
        """Remove the encoders whose features come from the cache."""
        for encoder in cached:
            set_module(self, self.encoders_at[encoder], None)
        self.cached = frozenset(cached)

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
        # Recomputation is compiled, too, so that the backward graph recomputes only what it needs.
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

    # From a batch to its losses and masks.

    @torch.no_grad()
    def features(self, encoder: Encoder, batch: Batch) -> Features:
        """An encoder's features of a batch: from the cache, or computed from its pixels."""
        given = batch.inputs[encoder]
        if encoder in self.cached:
            return given
        return self.encode(encoder, {name: _in(self.dtype, t) for name, t in given.items()})

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last-layer hidden states [B, T, H]; those of padding mean nothing."""
        learning = self.training and torch.is_grad_enabled()

        def run(index: int) -> RunLayer:
            return self.runs[index] if learning else self.run_evaluating

        return self.read(batch, run)

    def read(self, batch: Batch, run: Callable[[int], RunLayer], start: int = 0) -> Tensor:
        """Last-layer states [B, T - start, H] of a batch's tokens from `start` on, by `run(index)`.

        `run` has already seen everything before `start`, the pictures included.
        """
        fed: Mapping[int, Tensor] = {}
        ids, mask = batch.input_ids[:, start:], None
        if start == 0:
            seen = self.features(VISION, batch)
            fed = self.layer_inputs(ids, seen)
            hidden = self.embed(ids, seen)
            del seen  # features made just now are not kept through the layers
        else:
            hidden = self.embedding(ids).to(self.dtype)
        positions = self.positions(batch, 0, batch.input_ids.shape[1])
        if batch.blocks is not None and batch.places is not None:
            positions = positions.expand(*positions.shape[:-2], *batch.places.shape)
            positions = positions.gather(-1, batch.places.expand_as(positions))
        if batch.blocks is not None or start:
            blocks = torch.zeros_like(batch.input_ids) if batch.blocks is None else batch.blocks
            mask = attention_mask(blocks, hidden.dtype, start)
        rope = self.decoder.rotary_emb(hidden, positions[..., start:])  # type: ignore[operator]
        return self.through_layers(hidden, rope, mask, run, fed)

    def through_layers(
        self,
        hidden: Tensor,
        rope: Rope,
        mask: Tensor | None,
        run: Callable[[int], RunLayer],
        fed: Mapping[int, Tensor],
    ) -> Tensor:
        """Last-layer states of embeddings [B, T, H]; `fed` is added behind layers."""
        for index, layer in enumerate(self.decoder_layers):
            number = self.host_numbers.get(index)
            if number is None or self.host_layers is None:
                hidden = run(index)(layer, hidden, rope, mask)
            else:
                self.host_layers.fetch(number, 1)
                hidden = Gate.apply(run(index)(layer, hidden, rope, mask), self.host_layers, number)
            if index in fed:
                hidden = hidden + fed[index]
        return hidden if self.prompting.before_norm else self._normed(hidden)

    def _normed(self, hidden: Tensor) -> Tensor:
        states: Tensor = self.decoder.norm(hidden)  # type: ignore[operator]
        return states

    def for_head(self, states: Tensor) -> Tensor:
        """`hidden_states` [..., H] as the head takes them."""
        return self._normed(states) if self.prompting.before_norm else states

    def decode_masks(self, states: Tensor, batch: Batch) -> Tensor:
        """Low-resolution mask logits [M, L, L] of every [SEG], from the states [B, T, H]."""
        segs = batch.segs
        count = len(segs)
        # A mask decoder cannot run on nothing. One made-up prompt, cut off below, stands in: the
        # trained tensors stay in the graph, with zero gradients, as data-parallel wrappers need.
        owner, position = (segs if count else segs.new_zeros(1, 2)).unbind(1)
        before = int(not self.prompting.at_seg)
        prompts = self.prompts_of(states[owner, position - before])
        image = {name: t[owner] for name, t in self.features(MASK, batch).items()}
        return self.masks_of(prompts, image)[:count]

    def masks_of(self, prompts: Tensor, features: Features) -> Tensor:
        """Low-resolution logits [M, L, L] for prompts [M, k, E]; of several candidates the one with
        the mask decoder's highest score."""
        masks, scores = self.decode(prompts, features)
        if masks.shape[1] == 1:
            return masks[:, 0]
        best = scores.argmax(1)
        return masks[torch.arange(len(masks), device=masks.device), best]

    def answer_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy summed over the supervised positions, in nats."""
        owner, position = batch.predicting.unbind(1)
        head = self.head
        if isinstance(head, HostHead):
            supervised = self.for_head(states[owner, position])
            return head.cross_entropy_sum(supervised, batch.answers)
        compute, states = self.computed(head), self.for_head(states)
        if self.logits_at == "supervised":
            return cross_entropy_sum(compute(states[owner, position]), batch.answers)
        return cross_entropy_sum(compute(states)[owner, position], batch.answers)

    def forward(self, batch: Batch) -> LossSums:
        """The batch's loss sums; the caller divides them by the effective batch's totals."""
        states = self.hidden_states(batch)
        masks = self.decode_masks(states, batch)
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
        return self.decode_masks(states, batch).float()


def set_module(root: nn.Module, path: str, module: nn.Module | None) -> None:
    """Replace `root`'s submodule at `path` by `module`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
