"""A Plan -> the model on its device, quantised on arrival, the planned parts trained."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from profiles.models import ModelProfile
from profiles.plan import Plan
from profiles.settings import Dtype, Encoder
from trainer.model.adapters import add_adapters
from trainer.model.families.llava_sam.configs import llava_config, sam_config
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.layers.frozen import frozen_linear
from trainer.model.layers.host import HostEmbedding, HostHead, HostLayers
from trainer.model.layers.token_rows import TokenRowEmbedding, TokenRowHead
from trainer.model.trained import mark_trained
from trainer.model.weights import (
    WeightsError,
    WeightSource,
    materialise,
    model_folder,
    weight_source,
)

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
DECODER = "llava.model.language_model."


def read_tokenizer(plan: Plan) -> LisaTokenizer:
    """The plan's tokenizer. Raises WeightsError, FileNotFoundError."""
    return LisaTokenizer.read(model_folder(plan), plan.profile.clip.image_tokens)


def some_tokenizer(plan: Plan) -> LisaTokenizer:
    """The plan's tokenizer, or the packaged one where its weights are not here: enough to count."""
    try:
        return read_tokenizer(plan)
    except WeightsError:
        return read_tokenizer(plan.override(["weights=random"]))


def skeleton(profile: ModelProfile, tokenizer: LisaTokenizer) -> Lisa:
    """The model with every parameter on the meta device; buffers are real."""
    with init_empty_weights(include_buffers=False):
        return Lisa(
            llava_config(profile, tokenizer.image_id, tokenizer.pad_id),
            sam_config(profile),
            tokenizer.seg_id,
            profile.projector_layers,
        )


def build(
    plan: Plan,
    tokenizer: LisaTokenizer,
    device: torch.device,
    source: WeightSource | None = None,
    trained_dtype: torch.dtype = torch.float32,
) -> Lisa:
    """The model to train: base weights stored as planned, adapters and rows added, rest frozen.

    They come from the plan's source, unless another is given. Raises WeightsError.
    """
    return fill(skeleton(plan.profile, tokenizer), plan, tokenizer, device, source, trained_dtype)


def fill(
    model: Lisa,
    plan: Plan,
    tokenizer: LisaTokenizer,
    device: torch.device,
    source: WeightSource | None = None,
    trained_dtype: torch.dtype = torch.float32,
) -> Lisa:
    """Give a skeleton its tensors as `build` says; returns it.

    Tensors arrive one at a time and are stored as planned on arrival, so that loading never takes
    more memory than training.
    """
    torch.manual_seed(plan.seed)  # the adapters' starting values
    names = [name for name, _ in chain(model.named_parameters(), model.named_buffers())]
    dropped = [name for name in names if name.startswith(_dropped_prefixes(plan))]
    model.drop_encoders(plan.cached_encoders)
    model.logits_at, model.dtype = plan.logits, TORCH_DTYPES[plan.dtype]
    source = source or weight_source(plan)
    used = _load_decoder_layers(model, plan, source, device)
    if plan.host_embeddings:
        used += _load_host_embeddings(model, source, device)
    used += materialise(model, source, device, model.dtype, done=frozenset(used))
    model.sam.prompt_encoder.shared_embedding = model.sam.shared_image_embedding
    source.finish([*used, *dropped])
    add_trained(model, plan, tokenizer.new_ids, trained_dtype)
    model.plan_layers(plan.checkpointed_layers, plan.compile)
    _move_buffers(model, device)
    return model


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    """Parameters are born on the device; what is left are buffers that no file holds."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def check_compiler() -> None:
    """Raise ValueError if this installation cannot compile for the GPU; says what is missing."""
    if find_spec("triton") is None:
        missing = "Triton, which this installation of torch lacks"
    elif not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):
        missing = "a C compiler, with which Triton builds its launchers"
    else:
        return
    raise ValueError(f"compile: needs {missing}\n    hint: --set compile=false")


def add_trained(
    model: Lisa, plan: Plan, new_ids: list[int], dtype: torch.dtype = torch.float32
) -> None:
    """Add the adapters and trained rows to a model (on any device, meta too); mark what trains."""
    if plan.lora is not None:
        add_adapters(model, plan.lora)
    if "token_rows" in plan.train:
        _add_token_rows(model, new_ids, head="head" not in plan.train)
    mark_trained(model, plan, dtype)


def host_layer_places(plan: Plan) -> list[int]:
    """Which decoder layers live in host memory: evenly spread over the checkpointed ones.

    Apart, each copy has the arithmetic of all the layers up to the next one to hide behind.
    """
    count, among = plan.host_layers, plan.checkpointed_layers
    return [index * among // count for index in range(count)]


def _dropped_prefixes(plan: Plan) -> tuple[str, ...]:
    """Names of the encoders that the cache stands in for: in the files, not in the model."""
    prefixes = {"vision": "llava.model.vision_tower.", "mask": "sam.vision_encoder."}
    return tuple(prefixes[encoder] for encoder in plan.cached_encoders)


def _load_decoder_layers(
    model: Lisa, plan: Plan, source: WeightSource, device: torch.device
) -> list[str]:
    """Fill the decoder layers, one after the other; returns the names used."""
    used: list[str] = []
    host = host_layer_places(plan)
    if host:
        model.host_layers = HostLayers(device)
    for index, layer in enumerate(model.decoder_layers):
        prefix = f"{DECODER}layers.{index}."
        for path, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                name, shape = f"{prefix}{path}.weight", linear.weight.shape
                weight = source.get(name, shape, device, model.dtype)
                _set(layer, path, frozen_linear(weight, plan.quantization))
                used.append(name)
        used += materialise(layer, source, device, model.dtype, prefix, used)
        if index in host and model.host_layers is not None:
            model.host_numbers[index] = model.host_layers.adopt(layer)
    return used


def _load_host_embeddings(model: Lisa, source: WeightSource, device: torch.device) -> list[str]:
    """Embedding table and head into host memory; returns the names used."""
    names = [f"{DECODER}embed_tokens.weight", "llava.lm_head.weight"]
    shape = model.llava.lm_head.weight.shape
    home = torch.device("meta" if device.type == "meta" else "cpu")
    table, head = (source.get(name, shape, home, model.dtype) for name in names)
    model.llava.set_input_embeddings(HostEmbedding(table, device))
    model.llava.lm_head = HostHead(head, device)
    return names


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _add_token_rows(model: Lisa, ids: list[int], head: bool) -> None:
    model.llava.set_input_embeddings(TokenRowEmbedding(model.llava.get_input_embeddings(), ids))
    if not head:
        return
    if isinstance(model.llava.lm_head, HostHead):
        model.llava.lm_head.train_rows(ids)
    else:
        model.llava.lm_head = TokenRowHead(model.llava.lm_head, ids)


class FrozenEncoder(nn.Module):
    """One encoder of a skeleton alone, for building the feature cache: pixels -> features."""

    def __init__(
        self,
        model: Lisa,
        plan: Plan,
        encoder: Encoder,
        device: torch.device,
        source: WeightSource,
    ) -> None:
        super().__init__()
        self.device = device
        self.dtype = TORCH_DTYPES[plan.dtype]
        part: nn.Module = (
            model.llava.model.vision_tower if encoder == "vision" else model.sam.vision_encoder
        )
        prefix = "llava.model.vision_tower." if encoder == "vision" else "sam.vision_encoder."
        materialise(part, source, device, self.dtype, prefix)
        model.dtype = self.dtype
        _move_buffers(part, device)
        self.part = part.eval()
        self.encode = model.clip_features if encoder == "vision" else model.sam_features

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, side, side] -> [B, N, C] (CLIP) or [B, E, G, G] (SAM), in the plan's dtype."""
        return self.encode(pixels.to(self.device, self.dtype))


def save_model(model: Lisa, folder: Path, dtype: torch.dtype) -> Path:
    """Write all tensors of an unquantised model under canonical names; returns the file."""
    from safetensors.torch import save_file

    from trainer.model.weights import canonical_name

    tensors = {
        canonical_name(name): value.detach().to("cpu", dtype).contiguous()
        if value.is_floating_point()
        else value.detach().cpu()
        for name, value in model.state_dict().items()
        if not name.startswith("sam.prompt_encoder.shared_embedding.")
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path
