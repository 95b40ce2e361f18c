"""FP8's kernels against their twins, bit for bit, and the card's products against those in fp32.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from profiles.gpus import WITH_FP8
from tests.trainer.model.test_fp8 import STORAGES, hard_input, off, passed
from trainer.model.layers import fp8
from trainer.model.layers.fp8 import fp8_linear, quantised, scales_of
from trainer.model.layers.frozen import Nf4Linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < WITH_FP8,
        reason="needs a card with FP8 products",
    ),
]


def same(codes: Tensor, twin: Tensor) -> bool:
    return torch.equal(codes.cpu().view(torch.uint8), twin.view(torch.uint8))


@pytest.mark.parametrize("k", [128, 4096, 11008])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_activations_have_their_twins_codes(k: int, size: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(333, k) * size).bfloat16()
    x[5], x[6, 7] = 0, 100 * size
    made, twin = quantised(x.cuda()), quantised(x)
    assert same(made[0], twin[0])
    assert torch.equal(made[1].cpu(), twin[1])


def test_what_is_no_number_stays_none() -> None:
    """A run looks for NaN in its losses: no product may make a number of one."""
    x = torch.ones(2, 128, device="cuda", dtype=torch.bfloat16)
    x[1, 5] = torch.nan
    y = fp8_linear(torch.randn(64, 128, device="cuda", dtype=torch.bfloat16), "none")(x)
    assert y[0].isfinite().all() and y[1].isnan().all()


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("n", "k"), [(4096, 128), (100, 192), (256, 11008)])
def test_weights_have_their_twins_codes(n: int, k: int, back: bool) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(n, k) * 0.02).bfloat16()
    weight[3] = 0
    bits = Nf4Linear(weight.cuda()).bits
    worth = scales_of(weight.cuda().abs().amax(0 if back else 1))
    made = fp8.nf4_codes(*bits, worth, back)
    assert same(made, fp8.nf4_codes(*(one.cpu() for one in bits), worth.cpu(), back))
    for factor in (None, torch.rand(n)):
        there = None if factor is None else factor.cuda()
        for dense in (weight, (weight.float() * 1000).to(torch.int8)):
            made = fp8.dense_codes(dense.cuda(), there, worth, back)
            assert same(made, fp8.dense_codes(dense, factor, worth.cpu(), back))


def launches(work: Callable[[], object]) -> int:
    """Kernels, copies and fills of one call, once its kernels are compiled."""
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in seen.events())


@pytest.mark.parametrize("storage", STORAGES)
def test_a_weights_codes_are_one_launch(storage: str) -> None:
    """Of small products the launches take the time; a gradient's codes are one more."""
    x = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    codes, worth = quantised(x.detach())
    linear = fp8_linear(x.detach(), storage)
    y = linear(x)
    rows = linear.rows_worth

    def product() -> Tensor:
        return fp8.scaled_product(codes, worth, codes, rows, x.dtype)

    alone, gradient = launches(product), torch.ones_like(y)
    with torch.no_grad():
        assert launches(lambda: linear(x)) == alone + 2  # the input's codes, the weight's
    assert launches(lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)) == alone + 2


@pytest.mark.parametrize("storage", STORAGES)
def test_a_cards_products_are_those_of_the_cpu(storage: str) -> None:
    """They add up in another order, and their results are in bf16."""
    torch.manual_seed(0)
    weight = (torch.randn(256, 128) * 0.02).bfloat16()
    x, gradient = hard_input().bfloat16(), (torch.randn(2, 9, 256) * 1e-4).bfloat16()
    mine = passed(fp8_linear(weight.cuda(), storage), x.cuda(), gradient.cuda())
    twin = passed(fp8_linear(weight, storage), x, gradient)
    for one, other in zip(mine, twin, strict=True):
        assert off(one.cpu().float(), other.float()) < 0.01
