"""The same language model and adapters with others' libraries, as fast as these make it.

    python benchmarks/liger.py [BATCH ...]      one JSON line for each batch; needs a GPU

LLaMA-2-7B with random weights in NF4 (bitsandbytes, double quantisation), LoRA r=8 on q and v
(PEFT), every layer recomputed (transformers), Liger's kernels for norms, rotation, MLP and loss,
fused AdamW. It trains on rows of 672 tokens of which five are supervised, and has neither a picture
encoder nor a mask decoder: a step of this project does more.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

TOKENS, SUPERVISED = 672, 5
CAP_GIB = 7.3  # what an 8 GB card leaves to tensors
WARM_UP, STEPS = 3, 8


def quantised(model: nn.Module) -> None:
    """Give every place on the meta device random values; linears of layers as NF4 on the GPU."""
    import bitsandbytes as bnb

    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.randn(parameter.shape, dtype=torch.bfloat16, device="cuda") * 0.02
            if isinstance(module, bnb.nn.Linear4bit) and name == "weight":
                packed = bnb.nn.Params4bit(
                    value.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True,
                    module=module,
                )  # fmt: skip
                module.weight = packed.cuda()
            else:
                value = value.fill_(1) if "norm" in path else value
                setattr(module, name, nn.Parameter(value, requires_grad=False))


def made() -> nn.Module:
    """The model with its adapters, ready to train."""
    import bitsandbytes as bnb
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    apply_liger_kernel_to_llama()
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=32003, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, dtype="bfloat16", use_cache=False,
        )).to(torch.bfloat16)  # fmt: skip
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(part, name, bnb.nn.Linear4bit(
                            linear.in_features, linear.out_features, bias=False,
                            compute_dtype=torch.bfloat16, quant_type="nf4",
                            compress_statistics=True,
                        ))  # fmt: skip
    quantised(model)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config, device="cuda")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    adapters = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]
    )
    return get_peft_model(model, adapters).train()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, labels: Tensor) -> float:
    """One update; its loss."""
    loss: Tensor = model(input_ids=ids, labels=labels).loss
    loss.backward()
    nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def measured(model: nn.Module, batch: int) -> dict[str, Any]:
    """Samples a second and GiB of one batch size."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(100, 30000, (batch, TOKENS), device="cuda")
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    for _ in range(WARM_UP):
        step(model, optimizer, ids, labels)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step(model, optimizer, ids, labels)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    packages = ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel")
    return {
        "batch": batch,
        "samples_per_second": round(batch / statistics.median(seconds), 2),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "gpu": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    """Each batch size that fits under the cap."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP_GIB * 2**30 / total)
    model = made()
    for batch in map(int, sys.argv[1:] or ("8", "10")):
        try:
            row = measured(model, batch)
        except torch.OutOfMemoryError as error:
            row = {"batch": batch, "failed": str(error).splitlines()[0]}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
