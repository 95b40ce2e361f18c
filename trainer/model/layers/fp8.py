"""Products of frozen weights in FP8 (e4m3), which cards of compute capability 8.9 and later do at
twice the rate of bf16.

Each row of an operand has a scale that maps its largest value to 448, the largest of e4m3. A
weight's scales are computed once: by rows for the forward product, by columns for the input
gradient. A quantised weight is converted straight to FP8. Activations are scaled by row at run
time, once for all linears that read them: a compiled layer calls `fp8_rows` once for each input.
Gradients are scaled in the same way; e5m2, with its wider range and fewer digits, would lose twice
as much (docs/decisions.md).

The products run as `torch._scaled_mm`. Elsewhere the same codes are widened and multiplied, so that
a CPU rounds as a card does. Each kernel in `fp8_kernels` has its twin here, in plain torch.

Shapes: [M, K] activations, [N, K] weights, fp32 scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from profiles.gpus import WITH_FP8
from trainer.model.layers.frozen import Int8Linear, Nf4Linear, nf4_inner, nf4_values, nf4_weight

LARGEST = 448.0  # of e4m3
FP8 = torch.float8_e4m3fn
TINY = torch.finfo(torch.float32).tiny


def scales_of(largest: Tensor) -> Tensor:
    """What a code of 1 is worth in rows with these largest values; rows of zeros stay zeros."""
    # A product: on a card torch divides by a number as it pleases, and the kernels must agree.
    return largest.float().clamp(min=LARGEST * TINY) * (1 / LARGEST)


def codes_of(values: Tensor, scales: Tensor) -> Tensor:
    """e4m3 codes of `values`, by scales that broadcast."""
    return (values.float() * (1 / scales)).clamp(-LARGEST, LARGEST).to(FP8)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> codes [M, K] and scales [M, 1]."""
    if x.is_cuda:
        from trainer.model.layers import fp8_kernels

        return fp8_kernels.quantised(x.contiguous())
    scales = scales_of(x.abs().amax(1, keepdim=True))
    return codes_of(x, scales), scales


def nf4_codes(
    packed: Tensor,
    scales: Tensor,
    outer: Tensor,
    offset: Tensor,
    code: Tensor,
    worth: Tensor,
    back: bool,
) -> Tensor:
    """Codes of an NF4 weight [N, K] by its rows' scales [N]; `back`: of Wᵀ [K, N], by [K].

    `packed` holds two weights a byte, the first in its upper half.
    """
    bits, values = (packed, scales, outer, offset, code), nf4_values(packed.device)
    if packed.is_cuda:
        from trainer.model.layers import fp8_kernels

        return fp8_kernels.nf4_codes(*bits, values, worth, back)
    pairs, inner = packed.flatten(), nf4_inner(*bits[1:])
    halves = torch.stack([pairs >> 4, pairs & 15], 1).flatten().int()
    wide = values[halves].view(len(inner), -1) * inner[:, None]
    weight = wide.view(-1, len(worth)).t() if back else wide.view(len(worth), -1)
    return codes_of(weight, worth[:, None]).contiguous()


def dense_codes(weight: Tensor, factor: Tensor | None, worth: Tensor, back: bool) -> Tensor:
    """As `nf4_codes`, for a weight [N, K] in bf16, fp16, fp32 or int8, times a factor a row."""
    if weight.is_cuda:
        from trainer.model.layers import fp8_kernels

        return fp8_kernels.dense_codes(weight, factor, worth, back)
    wide = weight.float() if factor is None else weight.float() * factor[:, None]
    return codes_of(wide.t() if back else wide, worth[:, None]).contiguous()


def scaled_product(
    codes: Tensor, worth: Tensor, weight: Tensor, rows: Tensor, dtype: torch.dtype
) -> Tensor:
    """[M, K] · Wᵀ -> [M, N] of codes [M, K] and [N, K] with scales [M, 1] and [N]."""
    if codes.is_cuda:
        return torch._scaled_mm(
            codes, weight.t(), scale_a=worth, scale_b=rows[None], out_dtype=dtype,
            use_fast_accum=True,
        )  # fmt: skip
    return ((codes.float() @ weight.float().t()) * worth * rows).to(dtype)


OPERATORS = torch.library.Library("lisa_preflight", "FRAGMENT")


def _define(
    name: str, schema: str, compute: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """An operator that returns only new tensors; without `fake` it is composed of other operators.

    Neither `custom_op` nor `register_autograd` is used: the one inspects every call's tensors in
    Python, the other adds a call even in compiled layers, and a small product's time is its launch.
    """
    OPERATORS.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    kind = "Implicit" if fake is None else "Explicit"
    OPERATORS.impl(name, compute, f"Composite{kind}Autograd")
    if fake is not None:
        torch.library.register_fake(f"lisa_preflight::{name}", fake, lib=OPERATORS)
    made: Callable[..., Any] = getattr(torch.ops.lisa_preflight, name).default
    return made


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantised(x.reshape(-1, x.shape[-1]))


def _rows_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return x.new_empty(rows, x.shape[-1], dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)


# [..., K] -> codes [M, K] and scales [M, 1] of its M rows.
fp8_rows = _define("fp8_rows", "(Tensor x) -> (Tensor, Tensor)", _rows, _rows_fake)


def _operator(kind: str, stored: str, widen: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """x [..., K] · Wᵀ -> [..., N] as an operator with its gradient, for one kind of storage.

    It takes x, x's codes and their scales, the `stored` tensors, and the weight's scales by rows
    [N] and by columns [K]; `widen` makes the weight's codes. x itself only receives the gradient.
    """
    schema = f"{stored}, Tensor rows, Tensor columns) -> Tensor"

    def back(gradient: Tensor, *weight: Any) -> Tensor:
        *bits, _, columns = weight
        codes, flat = widen(*bits, columns, True), gradient.reshape(-1, gradient.shape[-1])
        made = scaled_product(*quantised(flat), codes, columns, gradient.dtype)
        return _shaped(made, gradient)

    def product(x: Tensor, codes: Tensor, worth: Tensor, *weight: Any) -> Tensor:
        *bits, rows, _ = weight
        made = scaled_product(codes, worth, widen(*bits, rows, False), rows, x.dtype)
        return _shaped(made, x)

    name, called = f"fp8_{kind}", f"(Tensor x, Tensor codes, Tensor worth, {schema}"
    forward = _define(
        name, called, product, lambda x, *weight: x.new_empty(*x.shape[:-1], len(weight[-2]))
    )
    backward = _define(
        f"{name}_back", f"(Tensor gradient, {schema}", back,
        lambda g, *weight: g.new_empty(*g.shape[:-1], len(weight[-1])),
    )  # fmt: skip

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs[3:])
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            saved = ctx.saved_tensors
            return backward(gradients[0].contiguous(), *saved), *[None] * (2 + len(saved))

    return _define(f"{name}_autograd", called, Product.apply)


def _shaped(made: Tensor, like: Tensor) -> Tensor:
    """[M, N] -> [..., N], not as a view: a bias may be added in place."""
    shaped: Tensor = torch.ops.aten._unsafe_view(made, [*like.shape[:-1], made.shape[-1]])
    return shaped


fp8_nf4 = _operator("nf4", "Tensor packed, Tensor scales, Tensor outer, Tensor offset, Tensor code",
                    nf4_codes)  # fmt: skip
fp8_dense = _operator("dense", "Tensor weight, Tensor? factor", dense_codes)


class _InFp8(nn.Module):
    """What the FP8 linears share: the weight's scales by rows and by columns."""

    rows_worth: Tensor
    columns_worth: Tensor

    def _scale(self, rows: Tensor, columns: Tensor) -> None:
        """Keep the scales of rows and columns with these largest values."""
        self.register_buffer("rows_worth", scales_of(rows), persistent=False)
        self.register_buffer("columns_worth", scales_of(columns), persistent=False)

    def _product(
        self, operator: Callable[..., Tensor], x: Tensor, *stored: Tensor | None
    ) -> Tensor:
        return operator(x, *fp8_rows(x.detach()), *stored, self.rows_worth, self.columns_worth)


class Fp8Nf4Linear(Nf4Linear, _InFp8):
    """An `Nf4Linear` whose products run in FP8."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        wide = nf4_weight(*self.bits, self.out_features, torch.float32).abs()
        self._scale(wide.amax(1), wide.amax(0))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        return self._with_bias(self._product(fp8_nf4, x, *self.bits))


class Fp8Int8Linear(Int8Linear, _InFp8):
    """An `Int8Linear` whose products run in FP8."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        wide = (self.codes * self.scales[:, None]).abs_()
        self._scale(wide.amax(1), wide.amax(0))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        return self._with_bias(self._product(fp8_dense, x, self.codes, self.scales))


class Fp8DenseLinear(nn.Linear, _InFp8):
    """A frozen linear in its compute dtype whose products run in FP8."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self._scale(weight.abs().amax(1), weight.abs().amax(0))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        y = self._product(fp8_dense, x, self.weight, None)
        return y if self.bias is None else y.add_(self.bias)


def check_card(card: int) -> None:
    """Raise ValueError if that CUDA card has no FP8 products."""
    if torch.cuda.get_device_capability(card) < WITH_FP8:
        what = f"{torch.cuda.get_device_name(card)} has none; compute capability 8.9 and later do"
        raise ValueError(f"products: fp8: {what}\n    hint: --set products=dtype")


def fp8_linear(
    weight: Tensor, storage: Literal["nf4", "int8", "none"], bias: Tensor | None = None
) -> nn.Module:
    """`frozen_linear` with products in FP8."""
    kinds = {"nf4": Fp8Nf4Linear, "int8": Fp8Int8Linear, "none": Fp8DenseLinear}
    return kinds[storage](weight, bias)
