"""FP8 products against e4m3 written out, and against the same products in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from tests.conftest import tiny_plan
from trainer.model.build import build, read_tokenizer
from trainer.model.layers.fp8 import (
    Fp8DenseLinear,
    Fp8Int8Linear,
    Fp8Nf4Linear,
    codes_of,
    fp8_linear,
    quantised,
    scales_of,
)
from trainer.model.layers.frozen import frozen_linear
from trainer.model.layers.host import Gate, HostLayers
from trainer.model.layers.host_memory import HostMemory

STORAGES = ("nf4", "int8", "none")


def every_value() -> list[float]:
    """What the codes 0 … 126 mean, by the format's definition (OCP 8-bit floating point, 2023):
    four bits of exponent, biased by 7, three of fraction; 127 is not a number."""
    found = []
    for code in range(127):
        exponent, fraction = code >> 3, code & 7
        value = fraction / 8 * 2**-6 if exponent == 0 else (1 + fraction / 8) * 2 ** (exponent - 7)
        found.append(value)
    return found


def nearest(value: float, values: list[float]) -> float:
    """The nearest value, the even code of two that are as near."""
    size = min(range(127), key=lambda code: (abs(values[code] - abs(value)), code & 1))
    return values[size] if value >= 0 else -values[size]


def test_codes_are_the_nearest_of_all_values() -> None:
    values = every_value()
    assert values[-1] == 448
    halves = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
    given = [*values, *halves, 1e-9, 500.0, *torch.linspace(0.001, 448, 500).tolist()]
    given += [-value for value in given]
    made = codes_of(torch.tensor(given), torch.ones(len(given))).float().tolist()
    assert made == [nearest(value, values) for value in given]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_row_is_scaled_by_its_largest_value(size: float) -> None:
    x = torch.tensor([[0.5, -2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]) * size
    codes, scales = quantised(x)
    assert codes.float().tolist() == [[112, -448, 0], [0, 0, 0], [448, 448, 448]]
    assert torch.allclose(codes.float() * scales, x, rtol=1e-6, atol=0)
    assert scales.isfinite().all() and (scales > 0).all()


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(2, 128)
    x[1, 5] = torch.nan
    y = fp8_linear(torch.randn(64, 128), "none")(x)
    assert y[0].isfinite().all() and y[1].isnan().all()


def hard_input() -> Tensor:
    """A channel 100 times the others, as LLaMA's first layers have, and a row of zeros."""
    x = torch.randn(2, 9, 128)
    x[..., 7] *= 100
    x[0, 3] = 0
    return x


def passed(linear: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A linear's output and its input's gradient."""
    x = x.clone().requires_grad_()
    y = linear(x)
    y.backward(gradient)
    assert x.grad is not None
    return y.detach(), x.grad


def off(made: Tensor, true: Tensor) -> float:
    return float((made - true).norm() / true.norm())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_close_to_that_of_the_stored_weight(storage: str, biased: bool) -> None:
    """Each operand is rounded by 2.6 % of its size; what is zero stays zero."""
    torch.manual_seed(0)
    weight, bias = torch.randn(256, 128) * 0.02, torch.randn(256) if biased else None
    weight[5] = 0
    x, gradient = hard_input(), torch.randn(2, 9, 256) * 1e-4
    plain, fast = frozen_linear(weight, storage, bias), fp8_linear(weight, storage, bias)
    (y, back), (y8, back8) = (passed(one, x, gradient) for one in (plain, fast))
    shift = 0 if bias is None else bias
    assert 0.01 < off(y8 - shift, y - shift) < 0.04
    assert 0.01 < off(back8, back) < 0.04
    assert torch.equal((y8 - shift)[..., 5], torch.zeros(2, 9))
    assert torch.equal(y8[0, 3], torch.zeros(256) + shift)


@pytest.mark.parametrize("storage", STORAGES)
def test_outputs_follow_from_the_codes_alone(storage: str) -> None:
    """An independent composition: round both operands, then multiply in fp64."""
    torch.manual_seed(1)
    weight = torch.randn(64, 128) * 0.02
    x, gradient = torch.randn(7, 128), torch.randn(7, 64)
    y, back = passed(fp8_linear(weight, storage), x, gradient)
    stored = frozen_linear(weight, storage)
    wide = stored(torch.eye(128)).t().contiguous()
    rounded = round_rows(wide)
    assert off(y, round_rows(x) @ rounded.t()) < 1e-5
    assert off(back, round_rows(gradient) @ round_rows(wide.t()).t()) < 1e-5


def round_rows(x: Tensor) -> Tensor:
    worth = x.abs().amax(1, keepdim=True) / 448
    return torch.where(worth > 0, (x / worth).to(torch.float8_e4m3fn).double() * worth, 0).float()


@pytest.mark.parametrize("storage", STORAGES)
def test_layers_in_host_memory_multiply_alike(storage: str) -> None:
    """Scales stay on the card; what is copied there back and forth belongs to them."""

    def layers() -> list[nn.Module]:
        torch.manual_seed(1)
        return [fp8_linear(torch.randn(128, 128) * 0.1, storage) for _ in range(4)]

    memory = HostMemory()
    host, hosted = HostLayers(torch.device("cpu"), memory), layers()
    numbers = [host.adopt(nn.Sequential(one)) for one in hosted]
    memory.complete()
    x = torch.randn(5, 128)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = nn.Sequential(*layers())(one)
    z = other
    for number, layer in zip(numbers, hosted, strict=True):
        host.fetch(number, 1)
        z = Gate.apply(layer(z), host, number)
    y.sum().backward()
    z.sum().backward()
    assert torch.equal(y, z) and torch.equal(one.grad, other.grad)


def test_linears_of_one_input_share_its_codes() -> None:
    """In a compiled layer, as q, k and v, or gate and up: quantised once, and once each back."""
    seen: list[list[str]] = []

    def look(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    backend = aot_autograd(
        fw_compiler=look, bw_compiler=look, partition_fn=min_cut_rematerialization_partition
    )
    linears = [fp8_linear(torch.randn(64, 128), "nf4") for _ in range(3)]
    x = torch.randn(4, 128, requires_grad=True)
    made = torch.compile(lambda x: sum(one(x) for one in linears), backend=backend)(x)
    made.sum().backward()
    forward, backward = seen
    assert forward.count("lisa_preflight.fp8_rows.default") == 1
    assert forward.count("lisa_preflight.fp8_nf4.default") == 3
    assert backward.count("lisa_preflight.fp8_nf4_back.default") == 3


@pytest.mark.parametrize(
    ("storage", "kind"),
    [("nf4", Fp8Nf4Linear), ("int8", Fp8Int8Linear), ("none", Fp8DenseLinear)],
)
def test_a_plan_puts_the_decoders_frozen_linears_alone_in_fp8(
    storage: str, kind: type[nn.Module]
) -> None:
    plan = tiny_plan(quantization=storage, products="fp8")
    model = build(plan, read_tokenizer(plan), torch.device("cpu"))
    found = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert len(found) == 7 * plan.profile.decoder.layers
    assert all(name.startswith(f"{model.decoder_at}.layers.") for name in found)


def test_scales_of_nothing_can_be_divided_by() -> None:
    assert torch.isfinite(1 / scales_of(torch.zeros(3))).all()
