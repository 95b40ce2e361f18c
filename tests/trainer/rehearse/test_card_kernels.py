"""What kernels take beside their results, as torch's memory history shows it on an H200."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from profiles.sizes import MIB
from tests.conftest import tiny_plan
from trainer.model.weights import DrawnShapes, ShapesAlone
from trainer.rehearse.card_kernels import WORKSPACE_EDGE, staged_bytes
from trainer.rehearse.fake import watch
from trainer.rehearse.memory_trace import MemoryTrace, rounded


def watched(
    run: Callable[..., Any], *shapes: tuple[int, ...], phase: str = "forward", **made: Any
) -> list[int]:
    """MiB that a run on fake tensors takes and gives, the large ones; what it returns stays."""
    trace = MemoryTrace()
    with FakeTensorMode(), trace:
        given = [torch.empty(shape, **made) for shape in shapes]
        first = len(trace.recorded)
        trace.begin(phase)
        run(*given)  # what it gave goes at once
        trace.close()
    return [size // MIB for _, size in trace.recorded[first:] if abs(size) >= MIB]


@pytest.mark.parametrize(
    ("shape", "over", "staged"),
    [
        ((4, 4096, 256), (0, 1), 32 * MIB),  # a bias of SAM's decoder, at four masks
        ((4, 4096, 128), (0, 1), 16 * MIB),
        ((3, 256), (0,), 0),  # few rows are summed up where they are
        ((4096, 4096), (1,), 0),  # along rows
        ((1, 1), (0,), 0),
    ],
)
def test_a_sum_for_few_columns_is_staged(
    shape: tuple[int, ...], over: tuple[int, ...], staged: int
) -> None:
    assert staged_bytes(torch.empty(shape, device="meta"), over) == staged


def test_a_convolutions_bias_is_staged_where_channels_come_last() -> None:
    planes = torch.empty(4, 64, 128, 128, dtype=torch.bfloat16, device="meta")
    last = planes.contiguous(memory_format=torch.channels_last)
    assert staged_bytes(last, (0, 2, 3)) == 8 * MIB
    assert staged_bytes(planes, (0, 2, 3)) == 0


def test_scattered_features_count_places_on_the_way_there_and_back() -> None:
    """8 bytes for each value going there; back 8 for each dimension of each value that was laid."""
    rows, half = (4, 1024, 256), (4, 512, 256)  # MiB of values

    def there(x: Tensor, source: Tensor) -> None:
        x.masked_scatter(torch.empty(4, 1024, 1, dtype=torch.bool), source)

    def back(gradient: Tensor, _: Tensor) -> None:
        mask = torch.empty(4, 1024, 1, dtype=torch.bool)
        torch.ops.aten.masked_scatter_backward(gradient, mask, half)

    assert watched(there, rows, half, dtype=torch.int8) == [1, 8, 1, -1, -8, -1]
    assert watched(back, rows, half, dtype=torch.bfloat16) == [1, 12, -1, 1, -12, -1]


def test_dropout_makes_its_mask_first_and_a_copy_in_any_case() -> None:
    for chance in (0.1, 0.0):
        dropped = watched(
            lambda x, p=chance: torch.native_dropout(x, p, p > 0), (4, MIB), dtype=torch.bfloat16
        )
        assert dropped[:2] == [4, 8]


def test_torchs_own_arithmetic_goes_on_in_place() -> None:
    """A linear's bias, and (sigmoid − target) · gradient; what a program asks for does not."""
    shape = 2, 4, 1024, 1024

    def linear(x: Tensor) -> Tensor:
        return functional.linear(x.permute(1, 0, 2, 3), torch.empty(1024, 1024), torch.empty(1024))

    def entropy_back(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.sigmoid(x).sub(x).mul(x)

    assert watched(linear, shape).count(32) == 2  # the input in order, and the product
    assert watched(entropy_back, shape, phase="backward") == [32, -32]
    assert watched(lambda x: torch.sigmoid(x).sub(x), shape, phase="forward").count(32) == 2


@pytest.mark.parametrize("seen", ["whole", "as a view"])
def test_gradients_are_not_added_into_views(seen: str) -> None:
    """A view holds on to its base, so autograd makes a third tensor."""

    def summed(x: Tensor) -> None:
        with torch.no_grad():
            first = x + 1
            first = first.view(-1) if seen == "as a view" else first
            total = first + x.view(first.shape)
            del first
            del total

    taken = [size for size in watched(summed, (MIB,), phase="backward") if size > 0]
    assert taken == ([4, 4] if seen == "as a view" else [4])


def test_attention_keeps_sums_for_the_way_back_alone_and_has_one_workspace() -> None:
    heads, shared = (4, 32, 1024, 64), (4, 8, 1024, 64)

    def back(x: Tensor, key: Tensor) -> int:
        trace = MemoryTrace()
        with trace:
            first = len(trace.recorded)
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                x, x, key, key, x, sums, 0.0, True
            )
        sizes = [size for _, size in trace.recorded[first:]]
        assert sizes[3] == -sizes[4]  # behind the three gradients
        return sizes[3]

    with FakeTensorMode():
        x = torch.empty(heads, dtype=torch.bfloat16)
        few = torch.empty(shared, dtype=torch.bfloat16)
        sums = torch.empty(heads[:3])
        values, rows = x.numel(), x.numel() // 64
        each = values * 4 + rows * 4 + WORKSPACE_EDGE
        assert back(x, x) == rounded(each)
        assert back(x, few) == rounded(each + values * 4)
        assert back(x, x[:, :, :512]) == rounded(each)  # fewer positions, as many heads
    plain = watched(lambda x: functional.scaled_dot_product_attention(x, x, x), (4, 256, 1024, 64))
    assert plain == [256, -256]


def test_random_weights_are_drawn_beside_their_block() -> None:
    """So a forecast of random weights counts it, and one of a folder's does not."""
    plan = tiny_plan(cached_encoders=["mask", "vision"])
    trace = MemoryTrace()
    with FakeTensorMode(), trace:
        place = torch.device("cpu")
        for source in (ShapesAlone("cpu"), DrawnShapes("cpu")):
            trace.begin(type(source).__name__)
            source.get("w", torch.Size((4096, 4096)), place, torch.bfloat16)
    assert trace.peaks() == {"ShapesAlone": 32 * MIB, "DrawnShapes": 40 * MIB}
    loads = [watch(plan.override([f"weights={weights}"]), (64, 64), 1, 0).trace.parts[1][0]
             for weights in ("default", "random")]  # fmt: skip
    assert loads[0] < loads[1]
