"""What kernels on a card allocate beside their results, and in which order.

A trace sees an operator as one call. This file lists the operators whose kernels on a card allocate
memory of their own, or make their results in another order than the CPU's, as torch's memory
history showed on an H100 and an H200.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

import trainer.model.layers.fp8  # noqa: F401  makes the operators that HIDDEN names
import trainer.model.layers.frozen  # noqa: F401  its operators

aten = torch.ops.aten


class Inside(NamedTuple):
    """Bytes of the blocks that a kernel takes for itself, by when it takes them.

    Before its results, and freed or not when these are made; or after its results. At the kernel's
    end all are freed.
    """

    before: list[int] = []
    held: list[int] = []
    after: list[int] = []


NOTHING_INSIDE = Inside()


def _nf4(x: Tensor, packed: Tensor, scales: Tensor, *rest: Any) -> Inside:
    """`nf4_product`: two forms of the scales until the weight is widened, then the weight."""
    widened = scales.numel() * 4
    return Inside([widened, widened], [packed.numel() * 2 * x.element_size()])


def _int8(x: Tensor, codes: Tensor, scales: Tensor, back: bool) -> Inside:
    """`int8_product`: the scales, in the backward pass the scaled input, the weight."""
    scaled = [_bytes(x)] if back else []
    weight = codes.numel() * x.element_size()
    return Inside(held=[scales.numel() * x.element_size(), *scaled, weight])


def _fp8(x: Tensor, codes: Tensor, worth: Tensor, *weight: Any) -> Inside:
    """`fp8_nf4` and `fp8_dense`: the weight's codes; it ends in a scale a row and one a column."""
    return Inside(held=[weight[-2].numel() * weight[-1].numel()])


def _fp8_back(gradient: Tensor, *weight: Any) -> Inside:
    """In the backward pass, the gradient's codes and their scales as well."""
    codes = [gradient.numel(), gradient.numel() // gradient.shape[-1] * 4]  # a scale a row
    return Inside(held=[weight[-2].numel() * weight[-1].numel(), *codes])


def _attention_back(gradient: Tensor, query: Tensor, key: Tensor, *rest: Any) -> Inside:
    """cuDNN's flash attention adds the query's gradient up in fp32, and keeps a sum a query row
    (Dao 2023, arXiv:2307.08691, algorithm 2), in one workspace. Where queries share keys it holds
    the gradients of each one's keys and values, too."""
    rows = query.numel() // query.shape[-1]
    shared = 2 * _bytes(query) if key.shape[1] < query.shape[1] else 0  # heads
    return Inside(after=[query.numel() * 4 + rows * 4 + shared + WORKSPACE_EDGE])


WORKSPACE_EDGE = 256  # bytes


def _in_order(*inputs: Any) -> Inside:
    """Kernels that read their inputs in order first copy one that has gaps or another order
    (torch's DilatedMaxPool2d.cu and layer_norm_kernel.cu)."""
    copied = (x for x in inputs if isinstance(x, Tensor) and not x.is_contiguous())
    return Inside(held=[_bytes(x) for x in copied])


def _pooled(x: Tensor, *rest: Any) -> Inside:
    """Pooling knows a second order: channels last."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return NOTHING_INSIDE if last else _in_order(x)


def _convolved(x: Tensor, weight: Tensor, *rest: Any) -> Inside:
    """cuDNN's convolutions take their input in the memory order that input and weight choose."""
    return Inside(held=_reordered(x, _order(x, weight)))


def _convolved_back(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Inside:
    """The backward pass takes the gradient in that order; at its end it is summed for the bias."""
    staged = [staged_bytes(gradient, (0, *range(2, gradient.dim())))] if rest[-1][2] else []
    return Inside(held=_reordered(gradient, _order(x, weight)), after=[s for s in staged if s])


def _order(*tensors: Tensor) -> torch.memory_format:
    """Channels last if one of them lies so (torch's ConvUtils.h)."""
    last = torch.channels_last
    lies_so = [t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=last)
               for t in tensors]  # fmt: skip
    return last if any(lies_so) else torch.contiguous_format


def _reordered(x: Tensor, order: torch.memory_format) -> list[int]:
    return [] if x.is_contiguous(memory_format=order) else [_bytes(x)]


def _scattered(x: Tensor, mask: Tensor, source: Tensor) -> Inside:
    """How many places of the mask come before each, and the mask as wide as the tensor
    (torch's IndexKernel.cpp)."""
    counted = [x.numel() * 8, x.numel(), x.numel() // 56 + 1200]
    return Inside(after=[*counted, *_reordered(source, torch.contiguous_format)])


def _picked(gradient: Tensor, mask: Tensor, sizes: list[int]) -> Inside:
    """`masked_scatter`'s backward pass: the mask as wide as the tensor, then the place of each
    value, a number for each dimension."""
    return Inside([gradient.numel()], [prod(sizes) * gradient.dim() * 8])


def _entropy(x: Tensor, *rest: Any) -> Inside:
    """Of logits: the logarithm of each one's sigmoid."""
    return Inside(after=[_bytes(x)])


def _summed(x: Tensor, over: list[int] | None = None, *rest: Any) -> Inside:
    """Partial sums of groups of threads, where more than one adds to the same result."""
    return Inside(after=[size] if (size := staged_bytes(x, over or range(x.dim()))) else [])


# torch's Reduce.cuh, on an H100 or H200.
PROCESSORS, THREADS_EACH, THREADS, WARP = 132, 2048, 512, 32


def staged_bytes(x: Tensor, over: Any) -> int:
    """Bytes that a sum over all but the innermost dimensions keeps in memory meanwhile.

    torch's `setReduceConfig`: a group of threads takes some columns and all their rows. Only if
    there are too few columns for all processors does it take a part of the rows, and then partial
    sums are kept.
    """
    summed = {dim % x.dim() for dim in over}
    wide = [dim for dim in range(x.dim()) if x.shape[dim] > 1]
    if not wide or min(wide, key=lambda dim: x.stride()[dim]) in summed:
        return 0
    columns = prod(size for dim, size in enumerate(x.shape) if dim not in summed)
    rows = x.numel() // columns
    at_once = next(n for n in (4, 2, 1) if columns % n == 0)  # columns of a thread
    most = THREADS // at_once
    width, height = (min(_power_below(n), most) for n in (columns // at_once, rows))
    across = min(width, WARP)
    down = min(height, most // across)
    across = min(width, most // down)
    each = -(-rows // down)  # values of a thread
    grid = -(-columns // at_once // across)
    room = PROCESSORS * (THREADS_EACH // (across * down))
    if rows < min(down * 16, 256) or each < 256 or grid > room:
        return 0
    parts = max(min(-(-room // grid), -(-each // 16)), -(-each // 256))
    return 4 * columns * parts * across * at_once if parts > 1 else 0


def _power_below(n: int) -> int:
    return 1 << (max(1, n).bit_length() - 1)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


# What is held inside of operators, by their packets.
HIDDEN: dict[Any, Callable[..., Inside]] = {
    torch.ops.lisa_preflight.nf4_product: _nf4,
    torch.ops.lisa_preflight.int8_product: _int8,
    torch.ops.lisa_preflight.fp8_nf4: _fp8,
    torch.ops.lisa_preflight.fp8_nf4_back: _fp8_back,
    torch.ops.lisa_preflight.fp8_dense: _fp8,
    torch.ops.lisa_preflight.fp8_dense_back: _fp8_back,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
    aten.convolution: _convolved,
    aten.convolution_backward: _convolved_back,
    aten.masked_scatter: _scattered,
    aten.masked_scatter_backward: _picked,
    aten.max_pool2d_with_indices: _pooled,
    aten.native_layer_norm: _in_order,
    aten.native_layer_norm_backward: _in_order,
    aten.binary_cross_entropy_with_logits: _entropy,
    aten.sum: _summed,
    aten.mean: _summed,
}
# Operators whose last result is made first.
BACKWARDS = {"native_dropout", "quantize_4bit"}  # by name: bitsandbytes may not be imported yet
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
# Operators that run on cuBLAS.
PRODUCTS = {
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm,
    torch.ops.lisa_preflight.nf4_product, torch.ops.lisa_preflight.int8_product,
}  # fmt: skip
# Results that torch's own arithmetic then changes in place.
GONE_ON = PRODUCTS | {aten.sigmoid, aten.sub}


def in_order_made(packet: Any, args: tuple[Any, ...], results: list[Any]) -> list[Any]:
    """An operator's results, in the order in which its kernel makes them."""
    if packet is ATTENTION and not _recorded(args):
        return results[:1]  # and no sums of the exponentials
    return results[::-1] if packet.__name__ in BACKWARDS else results


def _recorded(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in args[:3])


def works_in_place(before: Any, packet: Any, args: tuple[Any, ...]) -> bool:
    """Whether torch changes the result of `before` in place: to add a linear's bias, and in the
    backward pass of the cross-entropy of logits for (sigmoid − target) · gradient."""
    if packet is aten.add:
        return before in PRODUCTS and isinstance(args[1], Tensor) and args[1].dim() == 1
    back = not torch.is_grad_enabled()
    return back and (before, packet) in {(aten.sigmoid, aten.sub), (aten.sub, aten.mul)}


def card_results(func: Any, args: tuple[Any, ...]) -> Any:
    """The card's results of an operator that gives others than the CPU's; None for all others.

    Dropout makes a copy and a mask, whether it drops anything or not.
    """
    if func is aten.native_dropout.default and not args[2]:
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    return None
