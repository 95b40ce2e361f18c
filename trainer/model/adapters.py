"""LoRA adapters are PEFT's: its injection, layers, names, configuration and merging.

One part is our own, behind PEFT's interface: the forward pass of a decoder's linear
(`AdaptedLinear`), and the frozen linears under it (`trainer.model.layers.frozen`).

Shapes: [..., K] inputs, [N, K] weights, R adapter rank.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora as peft_lora
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from profiles.settings import Lora
from trainer.model.adapter_names import ADAPTER_NAME as NAME
from trainer.model.layers.frozen import FrozenLinear
from trainer.model.segmentation_model import SegmentationModel


class AdaptedLinear(peft_lora.Linear):
    """PEFT's LoRA layer: y = base(x) + (alpha / r) · B A dropout(x) (Hu et al. 2021,
    arXiv:2106.09685).

    The factors `lora_A` [R, K] and `lora_B` [N, R] are kept in fp32 and multiplied in x's dtype;
    PEFT's forward pass widens x and the sum instead (docs/decisions.md has what that takes).
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **settings: Any) -> None:
        super().__init__(base_layer, adapter_name, **settings)
        chosen = self.lora_dropout[adapter_name]
        self.dropout = chosen.p if isinstance(chosen, nn.Dropout) else 0.0

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        """K and N of any base layer: PEFT knows those of its own kinds and warns about others."""
        linear: Any = module
        return linear.in_features, linear.out_features

    @property
    def factors(self) -> tuple[Any, Any]:
        """A and B, each by the adapter's name."""
        return self.lora_A, self.lora_B

    def begin(self, device: torch.device) -> None:
        """Make the factors on `device`, in fp32, with PEFT's starting values."""
        for factor in self.factors:
            rows, columns = factor[NAME].weight.shape
            factor[NAME] = nn.Linear(columns, rows, bias=False, device=device)
        self.reset_lora_parameters(NAME, True)

    def forward(self, x: Tensor, *inputs: Any, **named: Any) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        base: Any = self.base_layer
        ours_alone = self.active_adapters == [NAME] and not (inputs or named)
        if not ours_alone or self.disable_adapters or self.merged:
            y: Tensor = super().forward(x, *inputs, **named)
            return y
        y = base(x)
        # By name: `dropout` is another operator, with a mask of another width, on every device.
        # At probability 0 the mask is there, but not drawn.
        down, _ = torch.native_dropout(x, self.dropout, self.training and self.dropout > 0)
        narrow, wide = (factor[NAME].weight.to(x.dtype) for factor in self.factors)
        inner = functional.linear(down, narrow)
        # One product adds the adapter to the base's output: no third [..., N] tensor.
        scale = self.scaling[NAME]
        added = torch.addmm(y.flatten(0, -2), inner.flatten(0, -2), wide.t(), alpha=scale)
        return added.view(y.shape)


def peft_config(lora: Lora, model: type[SegmentationModel], **more: Any) -> LoraConfig:
    """PEFT's configuration of the plan's adapters, with `more` of its settings."""
    # Of the decoder alone: a vision encoder may have linears of the same names.
    names = "|".join(map(re.escape, model.targets[lora.targets]))
    decoder = model.decoder_at.rpartition(".")[2]
    where = rf"(?:.*\.)?{decoder}\.(?:.*\.)?layers\.\d+\.(?:{names})"
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it, fractions too
        lora_dropout=lora.dropout,
        target_modules=where,
        **more,
    )


def add_adapters(model: SegmentationModel, lora: Lora) -> None:
    """Have PEFT put adapters on the decoder's linears, whatever these are stored in."""
    config = peft_config(lora, type(model))
    config._register_custom_module({FrozenLinear: AdaptedLinear, nn.Linear: AdaptedLinear})
    # Else PEFT draws gigabytes on the CPU, even for shapes alone; `begin` draws what is kept.
    with torch.device("meta"), no_init_weights():
        inject_adapter_in_model(config, model.get_submodule(model.adapted_at), NAME)
    norm: Any = model.decoder.norm
    for layer in model.decoder.modules():
        if isinstance(layer, AdaptedLinear):
            layer.begin(norm.weight.device)


def merged(weight: Tensor, down: Tensor, up: Tensor, lora: Lora) -> Tensor:
    """W [N, K] with its adapter's factors [R, K] and [N, R] merged in, by PEFT, in W's dtype."""
    alpha: Any = lora.alpha  # PEFT divides it: a fraction, too
    with torch.device("meta"):
        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        base.weight = nn.Parameter(weight.clone(), requires_grad=False)
        layer: Any = peft_lora.Linear(
            base, NAME, config=LoraConfig(), r=lora.rank, lora_alpha=alpha
        )
    layer.lora_A[NAME].weight, layer.lora_B[NAME].weight = map(nn.Parameter, (down, up))
    layer.merge()
    return base.weight.detach()
