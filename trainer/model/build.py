"""A Plan -> the model on its device, quantised on arrival, the planned parts trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from profiles.families import ModelProfile
from profiles.plan import Plan
from profiles.settings import Dtype, Encoder, Quantization
from trainer.model.adapters import add_adapters
from trainer.model.families import family_of
from trainer.model.layers.fp8 import check_card, fp8_linear
from trainer.model.layers.frozen import frozen_linear
from trainer.model.layers.host import HostEmbedding, HostHead, HostLayers
from trainer.model.layers.host_memory import HostMemory
from trainer.model.layers.token_rows import TokenRowEmbedding, TokenRowHead
from trainer.model.segmentation_model import Features, SegmentationModel, set_module
from trainer.model.tokenizer import ConversationTokenizer
from trainer.model.trained import mark_trained
from trainer.model.weights import (
    WeightsError,
    WeightSource,
    materialise,
    model_folder,
    weight_source,
)

LinearOf = Callable[[Tensor, Quantization, Tensor | None], nn.Module]  # of a weight and a bias
TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def read_tokenizer(plan: Plan) -> ConversationTokenizer:
    """The plan's tokenizer. Raises WeightsError, FileNotFoundError."""
    tokenizer = family_of(plan.profile).tokenizer
    if plan.weights == "random":
        return tokenizer.stand_in(plan.profile)
    return tokenizer.read(model_folder(plan), plan.profile.most_image_tokens)


def counting_tokenizer(plan: Plan) -> ConversationTokenizer:
    """The plan's tokenizer; if its weights are not here the shipped one, enough to count."""
    try:
        return read_tokenizer(plan)
    except WeightsError:
        return read_tokenizer(plan.override(["weights=random"]))


def skeleton(profile: ModelProfile, tokenizer: ConversationTokenizer) -> SegmentationModel:
    """The model with every parameter on the meta device; buffers are real.

    No starting values are drawn: on the meta device they would be four fifths of the time.
    """
    with init_empty_weights(include_buffers=False), no_init_weights():
        return family_of(profile).skeleton(profile, tokenizer)


def build(
    plan: Plan,
    tokenizer: ConversationTokenizer,
    device: torch.device,
    source: WeightSource | None = None,
    trained_dtype: torch.dtype = torch.float32,
    memory: HostMemory | None = None,
) -> SegmentationModel:
    """The model to train: base weights stored as planned, adapters and rows added, rest frozen.

    They come from the plan's source, unless another is given; what stays in host memory goes to
    `memory`. Raises WeightsError.
    """
    model = skeleton(plan.profile, tokenizer)
    return fill(model, plan, tokenizer, device, source, trained_dtype, memory)


def fill(
    model: SegmentationModel,
    plan: Plan,
    tokenizer: ConversationTokenizer,
    device: torch.device,
    source: WeightSource | None = None,
    trained_dtype: torch.dtype = torch.float32,
    memory: HostMemory | None = None,
    linear_of: LinearOf | None = None,
) -> SegmentationModel:
    """Give a skeleton its tensors as `build` says; returns it.

    Tensors arrive one at a time and are stored as planned on arrival, so that loading never takes
    more memory than training. `linear_of` makes the frozen linears instead of the plan's own.
    """
    torch.manual_seed(plan.seed)  # the adapters' starting values
    names = [name for name, _ in chain(model.named_parameters(), model.named_buffers())]
    # The cache replaces these encoders: the files hold them, the model does not.
    absent = tuple(f"{model.encoders_at[encoder]}." for encoder in plan.cached_encoders)
    dropped = [name for name in names if name.startswith(absent)]
    model.drop_encoders(plan.cached_encoders)
    model.logits_at, model.dtype = plan.logits, TORCH_DTYPES[plan.dtype]
    source, memory = source or weight_source(plan), memory or HostMemory()
    made = linear_of or (fp8_linear if plan.products == "fp8" else frozen_linear)
    used = _load_decoder_layers(model, plan, source, device, memory, made)
    if plan.host_embeddings:
        used += _load_host_embeddings(model, source, device, memory)
    used += materialise(
        model, source, device, model.dtype, done=frozenset(used), skip=shared_prefixes(model)
    )
    share(model)
    source.finish([*used, *dropped])
    memory.complete()  # trained rows begin as copies of a table's
    add_trained(model, plan, tokenizer.new_ids, trained_dtype)
    model.plan_layers(plan.checkpointed_layers, plan.compile)
    _move_buffers(model, device)
    return model


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers that no file holds; parameters are on the device already."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def check_compiler(needed_by: str = "compile", fix: str = "--set compile=false") -> None:
    """Raise ValueError if this installation cannot compile for the GPU; says what is missing."""
    if find_spec("triton") is None:
        missing = "Triton, which this installation of torch lacks"
    elif not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):
        missing = "a C compiler, with which Triton builds its launchers"
    else:
        return
    raise ValueError(f"{needed_by}: needs {missing}\n    hint: {fix}")


def check_products(plan: Plan, card: int) -> None:
    """Raise ValueError if that CUDA card cannot compute the plan's products."""
    if plan.products == "fp8":
        check_compiler("products: fp8", "--set products=dtype")
        check_card(card)


def add_trained(
    model: SegmentationModel, plan: Plan, new_ids: list[int], dtype: torch.dtype = torch.float32
) -> None:
    """Add the adapters and trained rows to a model (on any device, meta too); mark what trains."""
    if plan.lora is not None:
        add_adapters(model, plan.lora)
    if "token_rows" in plan.train:
        _add_token_rows(model, new_ids, head="head" not in plan.train)
    mark_trained(model, plan, dtype)


def host_layer_places(plan: Plan) -> list[int]:
    """Which decoder layers live in host memory: evenly spread over the checkpointed ones.

    Spread out, each copy hides behind the arithmetic of all the layers up to the next one.
    """
    count, among = plan.host_layers, plan.checkpointed_layers
    return [index * among // count for index in range(count)]


def shared_prefixes(model: SegmentationModel) -> tuple[str, ...]:
    """Prefixes under which no file holds a tensor: those are another tensor of the model."""
    return tuple(f"{name}." for name in (*model.one_with, *[model.head_at] * model.tied_head))


def share(model: SegmentationModel) -> None:
    """Tie the parts that are to be the same module as another part of the model."""
    for name, other in model.one_with.items():
        set_module(model, name, model.get_submodule(other))
    if model.tied_head:
        model.head.weight = model.embedding.weight


def _load_decoder_layers(
    model: SegmentationModel,
    plan: Plan,
    source: WeightSource,
    device: torch.device,
    memory: HostMemory,
    linear_of: LinearOf,
) -> list[str]:
    """Fill the decoder layers, one after the other; returns the names used."""
    used: list[str] = []
    host = host_layer_places(plan)
    if host:
        model.host_layers = HostLayers(device, memory)
    for index, layer in enumerate(model.decoder_layers):
        prefix = f"{model.decoder_at}.layers.{index}."
        for path, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                name, shape = f"{prefix}{path}.weight", linear.weight.shape
                weight = source.get(name, shape, device, model.dtype)
                used.append(name)
                bias: Tensor | None = linear.bias
                if bias is not None:
                    name = f"{prefix}{path}.bias"
                    bias = source.get(name, bias.shape, device, model.dtype)
                    used.append(name)
                set_module(layer, path, linear_of(weight, plan.quantization, bias))
        used += materialise(layer, source, device, model.dtype, prefix, used)
        if index in host and model.host_layers is not None:
            model.host_numbers[index] = model.host_layers.adopt(layer)
    return used


def _load_host_embeddings(
    model: SegmentationModel, source: WeightSource, device: torch.device, memory: HostMemory
) -> list[str]:
    """Load embedding table and head into host memory; returns the names used."""
    names = model.tables()
    shape = model.get_parameter(names[1]).shape
    home = torch.device("meta" if device.type == "meta" else "cpu")

    def table(name: str) -> Tensor:
        read = partial(source.get, name, shape, home, model.dtype)
        return memory.table(shape, model.dtype, read)

    embedding = HostEmbedding(table(names[0]), device)
    head = embedding.weight if model.tied_head else table(names[1])
    model.replace_tables(embedding, HostHead(head, device))
    return list(names)


def _add_token_rows(model: SegmentationModel, ids: list[int], head: bool) -> None:
    table: Any = model.embedding
    embedding = TokenRowEmbedding(table, ids)
    base: Any = model.head
    if head and isinstance(base, HostHead):
        base.train_rows(ids)
    elif head:
        base = TokenRowHead(base, ids)
    if head and model.tied_head:
        base.rows = embedding.rows
    model.replace_tables(embedding, base)


class FrozenEncoder(nn.Module):
    """One encoder of a skeleton, for building the feature cache: pixels -> features."""

    def __init__(
        self,
        model: SegmentationModel,
        plan: Plan,
        encoder: Encoder,
        device: torch.device,
        source: WeightSource,
    ) -> None:
        super().__init__()
        self.device = device
        self.dtype = TORCH_DTYPES[plan.dtype]
        part = model.get_submodule(model.encoders_at[encoder])
        materialise(part, source, device, self.dtype, f"{model.encoders_at[encoder]}.")
        model.dtype = self.dtype
        _move_buffers(part, device)
        self.part = part.eval()
        self.encode = partial(model.encode, encoder)

    @torch.no_grad()
    def forward(self, pixels: Features) -> dict[str, Tensor]:
        """A batch's pixels -> its features in the plan's dtype, by the family's names."""
        return self.encode(
            {
                name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
                for name, tensor in pixels.items()
            }
        )


def save_model(model: SegmentationModel, folder: Path, dtype: torch.dtype) -> Path:
    """Write all tensors of an unquantised model by their names; returns the file."""
    from trainer.tensor_files import save_file

    tensors = {
        name: value.detach().to("cpu", dtype).contiguous()
        if value.is_floating_point()
        else value.detach().cpu()
        for name, value in model.state_dict().items()
        if not name.startswith(shared_prefixes(model))
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path
