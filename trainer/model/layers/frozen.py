"""Frozen linears stored in few bits.

A frozen weight needs no gradient, so nothing is kept for the backward pass: the forward pass
multiplies by the widened weight and frees it, the backward pass widens it again. Both products are
operators (`torch.library`), so that neither autograd nor a compiler keeps a widened copy between
them. The bits are bitsandbytes': NF4 in blocks of 64 with doubly quantised scales (Dettmers et al.
2023, arXiv:2305.14314) or int8 with one scale a row (Dettmers et al. 2022, arXiv:2208.07339; the
activations stay in the compute dtype here).

Shapes: [..., K] inputs, [N, K] weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

NF4_BLOCK, SCALE_BLOCK = 64, 256
FEW_ROWS = 4  # up to them bitsandbytes' product of every card widens no weight


def nf4_inner(scales: Tensor, outer: Tensor, offset: Tensor, code: Tensor) -> Tensor:
    """The scale of each block of 64 values, fp32."""
    widen = torch.ops.bitsandbytes.dequantize_blockwise
    inner: Tensor = widen(scales, outer, code, SCALE_BLOCK, torch.float32) + offset
    return inner


def nf4_weight(
    packed: Tensor,
    scales: Tensor,
    outer: Tensor,
    offset: Tensor,
    code: Tensor,
    n: int,
    dtype: torch.dtype,
) -> Tensor:
    """The widened weight [n, K]."""
    widen = torch.ops.bitsandbytes
    inner = widen.dequantize_blockwise(scales, outer, code, SCALE_BLOCK, torch.float32)
    shape = [n, packed.numel() * 2 // n]
    weight: Tensor = widen.dequantize_4bit(packed, inner + offset, NF4_BLOCK, "nf4", shape, dtype)
    return weight


@torch.library.custom_op("lisa_preflight::nf4_product", mutates_args=())
def nf4_product(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    outer: Tensor,
    offset: Tensor,
    code: Tensor,
    rows: int,
    back: bool,
) -> Tensor:
    """x [..., K] · Wᵀ -> [..., rows]; `back`: x [..., rows] · W -> [..., K]."""
    weight = nf4_weight(packed, scales, outer, offset, code, rows, x.dtype)
    return x @ weight if back else x @ weight.t()


@nf4_product.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    outer: Tensor,
    offset: Tensor,
    code: Tensor,
    rows: int,
    back: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.numel() * 2 // rows if back else rows)


@torch.library.custom_op("lisa_preflight::int8_product", mutates_args=())
def int8_product(x: Tensor, codes: Tensor, scales: Tensor, back: bool) -> Tensor:
    """x [..., K] · Wᵀ -> [..., N] with W = codes · scales; `back`: x [..., N] · W -> [..., K]."""
    scales = scales.to(x.dtype)
    if back:
        return (x * scales) @ codes.to(x.dtype)
    return (x @ codes.to(x.dtype).t()).mul_(scales)


@int8_product.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, back: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[1] if back else codes.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the stored bits (the module's own tensors, no copies) for the backward product."""
    ctx.save_for_backward(*(value for value in inputs[1:] if isinstance(value, Tensor)))
    ctx.numbers = [value for value in inputs[1:-1] if not isinstance(value, Tensor)]


def _nf4_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    moved = nf4_product(gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers, True)
    return moved, None, None, None, None, None, None, None


def _int8_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return int8_product(gradient.contiguous(), *ctx.saved_tensors, True), None, None, None


nf4_product.register_autograd(_nf4_backward, setup_context=_keep)
int8_product.register_autograd(_int8_backward, setup_context=_keep)


def make_scale_code() -> None:
    """Make bitsandbytes build its code table for NF4 scales now, on the CPU with real numbers.

    The process keeps the table. Otherwise the first weight would build it on a meta or fake device.
    """
    from bitsandbytes.functional import create_dynamic_map, name2qmap

    if "dynamic" not in name2qmap:
        name2qmap["dynamic"] = create_dynamic_map()


@contextmanager
def _on_default_stream(device: torch.device) -> Iterator[None]:
    """Run the block on the card's default stream, in order with the work on the current stream.

    bitsandbytes (0.50) quantises on the default stream, whichever stream is current. Without this
    it would read weights that are not written yet, and its own scales before they are made.
    """
    if device.type != "cuda":
        yield
        return
    now, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(now)
    with torch.cuda.stream(default):
        yield
    now.wait_stream(default)


class FrozenLinear(nn.Module):
    """y = x · Wᵀ (+ b) with W [N, K] stored in few bits; `stored` names its large tensors."""

    stored: ClassVar[tuple[str, ...]] = ()
    bias: Tensor | None

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("bias", bias, persistent=False)

    @property
    def qweight(self) -> Tensor:
        """The largest of the stored tensors, by the name under which PEFT asks for the device."""
        bits: Tensor = getattr(self, self.stored[0])
        return bits

    def _with_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y.add_(self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Nf4Linear(FrozenLinear):
    """4.127 bits a weight: packed NF4, a byte a block of 64, a float a 256 of those."""

    stored = ("packed", "scales", "outer")
    packed: Tensor
    scales: Tensor
    outer: Tensor
    offset: Tensor
    code: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantise a weight [N, K] in its compute dtype, on the device where it will stay."""
        from bitsandbytes.functional import quantize_4bit

        make_scale_code()

        super().__init__(weight.shape[0], weight.shape[1], bias)
        with _on_default_stream(weight.device):
            packed, state = quantize_4bit(
                weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
            )
        for name, value in (
            ("packed", packed),
            ("scales", state.absmax),
            ("outer", state.state2.absmax),
            ("offset", state.offset),
            ("code", state.state2.code),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        if x.numel() <= FEW_ROWS * self.in_features and not torch.is_grad_enabled():
            return self._with_bias(self._few_rows(x))
        y: Tensor = nf4_product(x, *self.bits, self.out_features, False)
        return self._with_bias(y)

    @property
    def bits(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All that the weight is made of, as `nf4_weight` takes it."""
        return self.packed, self.scales, self.outer, self.offset, self.code

    def _few_rows(self, x: Tensor) -> Tensor:
        """As `forward`, without a bias and without widening the weight.

        One token's time is that of reading the weight, so one kernel reads its 4 bits and their
        scales directly (benchmarks/answering.py).
        """
        shape = [self.out_features, self.in_features]
        y: Tensor = torch.ops.bitsandbytes.gemm_4bit(
            x, self.packed, shape, self.outer, NF4_BLOCK, "nf4",
            absmax_8bit=self.scales, absmax_code=self.code, absmax_offset=self.offset,
        )  # fmt: skip
        return y


@cache
def nf4_values(device: torch.device) -> Tensor:
    """NF4's sixteen values, fp32."""
    from bitsandbytes.functional import get_4bit_type

    values: Tensor = get_4bit_type("nf4", device, NF4_BLOCK)
    return values


class Int8Linear(FrozenLinear):
    """One byte a weight and a float a row."""

    stored = ("codes", "scales")
    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """From a weight [N, K] on the device where it is to stay."""
        super().__init__(weight.shape[0], weight.shape[1], bias)
        largest = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
        scales = largest / 127
        codes = (weight.float() / scales[:, None]).round_().to(torch.int8)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        y: Tensor = int8_product(x, self.codes, self.scales, False)
        return self._with_bias(y)


# bitsandbytes' operators in a step, by storage.
KERNELS: dict[str, tuple[str, ...]] = {"nf4": ("dequantize_4bit", "dequantize_blockwise")}


def without_own_kernel(storage: str, device: str) -> list[str]:
    """bitsandbytes' operators for which torch operations stand in on "CUDA" or "CPU"."""
    own = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in KERNELS.get(storage, ()) if not own(f"bitsandbytes::{name}", device)]


def frozen_linear(
    weight: Tensor, storage: Literal["nf4", "int8", "none"], bias: Tensor | None = None
) -> nn.Module:
    """A frozen linear of weight [N, K] and bias [N]; the bias is never quantised."""
    if storage == "nf4":
        return Nf4Linear(weight, bias)
    if storage == "int8":
        return Int8Linear(weight, bias)
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
