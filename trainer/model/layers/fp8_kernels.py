"""The kernels of `trainer.model.layers.fp8`, in Triton; the functions of that name there say what
they compute, and give the same codes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.model.layers.frozen import NF4_BLOCK, SCALE_BLOCK

FP8 = torch.float8_e4m3fn
LARGEST, ONE_CODE = tl.constexpr(448.0), tl.constexpr(1 / 448.0)
SMALLEST = 448.0 * torch.finfo(torch.float32).tiny
ROWS = 64  # of a tile
BLOCK = NF4_BLOCK  # columns of a tile


# Triton knows no annotations but its own.
@triton.jit
def _quantise_row(x, codes, scales, k, smallest, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    values = tl.load(x + row * k + column, mask=column < k, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), smallest) * ONE_CODE
    scaled = values * tl.div_rn(1.0, scale)
    scaled = tl.clamp(scaled, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    tl.store(codes + row * k + column, scaled.to(tl.float8e4nv), mask=column < k)
    tl.store(scales + row, scale)


@triton.jit
def _put(wide, scales, codes, row, column, n, k, BACK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scale a tile [rows, columns] and store it, or its transpose."""
    inside = (row < n)[:, None] & (column < k)[None, :]
    if BACK:
        scale = tl.load(scales + column, mask=column < k, other=1.0)[None, :]
    else:
        scale = tl.load(scales + row, mask=row < n, other=1.0)[:, None]
    one = tl.full(scale.shape, 1.0, tl.float32)
    scaled = wide * tl.div_rn(one, scale)
    made = tl.clamp(scaled, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    made = made.to(tl.float8e4nv)
    if BACK:
        place = column.to(tl.int64)[:, None] * n + row[None, :]
        tl.store(codes + place, tl.trans(made), mask=tl.trans(inside))
    else:
        tl.store(codes + row.to(tl.int64)[:, None] * k + column[None, :], made, mask=inside)


@triton.jit
def _nf4_tile(packed, scales, outer, offset, code, values, worth, codes,  # type: ignore[no-untyped-def]
              n, k, BACK: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
              OUTER: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    block, start = tl.program_id(1), row.to(tl.int64)
    half = block * (C // 2) + tl.arange(0, C // 2)
    inside = row < n
    place = start[:, None] * (k // 2) + half[None, :]
    pairs = tl.load(packed + place, mask=inside[:, None], other=0).to(tl.int32)
    wide = tl.interleave(tl.load(values + (pairs >> 4)), tl.load(values + (pairs & 15)))
    place = start * (k // C) + block
    scale = tl.load(code + tl.load(scales + place, mask=inside, other=0).to(tl.int32))
    inner = scale * tl.load(outer + place // OUTER, mask=inside, other=0.0) + tl.load(offset)
    _put(wide * inner[:, None], worth, codes, row, block * C + tl.arange(0, C), n, k, BACK)


@triton.jit
def _dense_tile(weight, factor, worth, codes, n, k,  # type: ignore[no-untyped-def]
                BACK: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    inside = (row < n)[:, None] & (column < k)[None, :]
    place = row.to(tl.int64)[:, None] * k + column[None, :]
    wide = tl.load(weight + place, mask=inside, other=0).to(tl.float32)
    if factor is not None:
        wide *= tl.load(factor + row, mask=row < n, other=0.0)[:, None]
    _put(wide, worth, codes, row, column, n, k, BACK)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K], contiguous -> codes [M, K] and scales [M, 1]."""
    rows, k = x.shape
    codes, scales = torch.empty_like(x, dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)
    width = triton.next_power_of_2(k)
    warps = min(16, max(4, width // 1024))
    _quantise_row[(rows,)](x, codes, scales, k, SMALLEST, WIDTH=width, num_warps=warps)
    return codes, scales


def nf4_codes(
    packed: Tensor,
    scales: Tensor,
    outer: Tensor,
    offset: Tensor,
    code: Tensor,
    values: Tensor,
    worth: Tensor,
    back: bool,
) -> Tensor:
    """Codes [N, K] or, `back`, [K, N]; K is a multiple of 64."""
    other = packed.numel() * 2 // len(worth)
    n, k = (other, len(worth)) if back else (len(worth), other)
    codes = packed.new_empty(len(worth), other, dtype=FP8)
    # Fused, code * outer + offset would round once, where bitsandbytes and the twin round twice.
    _nf4_tile[triton.cdiv(n, ROWS), k // BLOCK](
        packed, scales, outer, offset, code, values, worth, codes, n, k,
        BACK=back, R=ROWS, C=BLOCK, OUTER=SCALE_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return codes


def dense_codes(weight: Tensor, factor: Tensor | None, worth: Tensor, back: bool) -> Tensor:
    """Codes [N, K] or, `back`, [K, N]."""
    n, k = weight.shape
    codes = weight.new_empty((k, n) if back else (n, k), dtype=FP8)
    tiles = triton.cdiv(n, ROWS), triton.cdiv(k, BLOCK)
    _dense_tile[tiles](weight, factor, worth, codes, n, k, BACK=back, R=ROWS, C=BLOCK)
    return codes
