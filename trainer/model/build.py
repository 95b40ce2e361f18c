"""A Plan -> the model on its device, quantised on arrival, the planned parts trained."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from profiles.catalog import ModelProfile
from profiles.plan import Dtype, Encoder, Lora, Plan, Quantization
from trainer.model.configs import llava_config, sam_config
from trainer.model.lisa import Lisa
from trainer.model.rows import TokenRowEmbedding, TokenRowHead
from trainer.model.tokens import LisaTokenizer
from trainer.model.trained import mark_trained
from trainer.model.weights import materialise, model_folder, weight_source

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
LORA_TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all-linear": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip


def read_tokenizer(plan: Plan) -> LisaTokenizer:
    """The plan's tokenizer. Raises WeightsError, FileNotFoundError."""
    return LisaTokenizer.read(model_folder(plan), plan.profile.clip.image_tokens)


def skeleton(profile: ModelProfile, tokenizer: LisaTokenizer) -> Lisa:
    """The model with every parameter on the meta device; buffers are real."""
    with init_empty_weights(include_buffers=False):
        return Lisa(
            llava_config(profile, tokenizer.image_id, tokenizer.pad_id),
            sam_config(profile),
            tokenizer.seg_id,
            profile.projector_layers,
        )


def build(plan: Plan, tokenizer: LisaTokenizer, device: torch.device) -> Lisa:
    """The model to train: base weights stored as planned, adapters and rows added, rest frozen.

    Raises WeightsError.
    """
    torch.manual_seed(plan.seed)  # the adapters' starting values
    model = skeleton(plan.profile, tokenizer)
    model.drop_encoders(plan.cached_encoders)
    model.logits_at = plan.logits
    dtype = TORCH_DTYPES[plan.dtype]
    _load(model, plan, device, dtype)
    if plan.lora is not None:
        _add_lora(model, plan.lora, plan.quantization)
    if "token_rows" in plan.train:
        _add_token_rows(model, tokenizer.new_ids)
    mark_trained(model, plan)
    model.checkpoint_layers(plan.checkpointed_layers)
    return model.to(device)


def _load(model: Lisa, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
    source = weight_source(plan)
    linears = _quantised_linears(model, plan.quantization, dtype)

    def place(name: str, value: Tensor) -> nn.Parameter | Tensor:
        if not value.is_floating_point():
            return value.to(device)
        owner = linears.get(name.removesuffix(".weight"))
        if owner is not None:
            return _quantised(owner, value.to(dtype), plan.quantization, device)
        return nn.Parameter(value.to(device, dtype), requires_grad=False)

    asked = materialise(model, source, place)
    model.sam.prompt_encoder.shared_embedding = model.sam.shared_image_embedding
    source.finish([*asked, *_dropped_names(plan, asked)])


def _dropped_names(plan: Plan, asked: list[str]) -> list[str]:
    """Names of the encoders that the cache stands in for: in the files, not in the model."""
    whole = skeleton(plan.profile, read_tokenizer(plan)).state_dict()
    prefixes = {"clip": "llava.model.vision_tower.", "sam": "sam.vision_encoder."}
    dropped = tuple(prefixes[encoder] for encoder in plan.cached_encoders)
    return [name for name in whole if name.startswith(dropped)] if dropped else []


def _quantised_linears(
    model: Lisa, quantization: Quantization, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Replace the decoder's linears by bitsandbytes' and return them by full name."""
    if quantization == "none":
        return {}
    import bitsandbytes as bnb

    replaced: dict[str, nn.Module] = {}
    prefix = "llava.model.language_model."
    for path, linear in list(model.decoder.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        shape = linear.in_features, linear.out_features
        with torch.device("meta"):
            new: nn.Module = (
                bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=dtype, quant_type="nf4")
                if quantization == "nf4"
                else bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
            )
        # On CPUs with AVX512-BF16 an evaluation would repack the weights for a forward pass without
        # a backward: adapters whose output passes another linear would then learn nothing.
        new.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        parent, _, name = path.rpartition(".")
        setattr(model.decoder.get_submodule(parent), name, new)
        replaced[prefix + path] = new
    return replaced


def _quantised(
    owner: nn.Module, value: Tensor, quantization: Quantization, device: torch.device
) -> nn.Parameter:
    """The weight in bitsandbytes' storage, quantised on the way to `device`."""
    import bitsandbytes as bnb

    if quantization == "nf4":
        stored = bnb.nn.Params4bit(
            value, requires_grad=False, quant_type="nf4", compress_statistics=True, module=owner
        )
    else:
        stored = bnb.nn.Int8Params(value, requires_grad=False, has_fp16_weights=False)
    moved: nn.Parameter = stored.to(device)
    return moved


def _add_lora(model: Lisa, lora: Lora, quantization: Quantization) -> None:
    # PEFT picks its quantised layers by these marks, which from_pretrained would have set.
    model.decoder.is_loaded_in_4bit = quantization == "nf4"  # type: ignore[assignment]
    model.decoder.is_loaded_in_8bit = quantization == "int8"  # type: ignore[assignment]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LORA_TARGETS[lora.targets],
    )
    # Injected below the decoder, so that names like q_proj cannot reach CLIP or SAM.
    inject_adapter_in_model(config, model.decoder)


def _add_token_rows(model: Lisa, ids: list[int]) -> None:
    model.llava.set_input_embeddings(TokenRowEmbedding(model.llava.get_input_embeddings(), ids))
    model.llava.lm_head = TokenRowHead(model.llava.lm_head, ids)


class FrozenEncoder(nn.Module):
    """One frozen encoder alone, for building the feature cache: pixels -> features."""

    def __init__(self, plan: Plan, encoder: Encoder, device: torch.device) -> None:
        super().__init__()
        model = skeleton(plan.profile, read_tokenizer(plan))
        self.device = device
        self.dtype = TORCH_DTYPES[plan.dtype]
        source = weight_source(plan)
        part: nn.Module = (
            model.llava.model.vision_tower if encoder == "clip" else model.sam.vision_encoder
        )
        prefix = "llava.model.vision_tower." if encoder == "clip" else "sam.vision_encoder."

        def place(name: str, value: Tensor) -> nn.Parameter | Tensor:
            kept = value.to(device, self.dtype) if value.is_floating_point() else value.to(device)
            return nn.Parameter(kept, requires_grad=False) if kept.is_floating_point() else kept

        materialise(part, source, place, prefix)
        self.model = model.eval()
        self.part = part.to(device)
        self.encode = model.clip_features if encoder == "clip" else model.sam_features

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
