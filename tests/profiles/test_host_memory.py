"""Host memory of batches, by hand."""

from __future__ import annotations

from profiles.host_memory import batch_bytes, pinned_size
from profiles.sizes import MIB
from tests.conftest import tiny_plan


def test_torch_pins_powers_of_two() -> None:
    assert [pinned_size(size) for size in (1, 512, 513)] == [1, 512, 1024]


def test_masks_are_a_part_of_the_batches() -> None:
    """draw-54 and draw-100 lacked 0.25 GiB: two micro-batches of 64 masks of 1024 x 1024."""
    plan = tiny_plan(micro_batch=16, effective_batch=32, mask_loss_resolution=1024)
    without = plan.model_copy(update={"mask_loss_resolution": 0})
    assert batch_bytes(plan, 4) - batch_bytes(plan, 1) == 4 * (64 - 16) * MIB
    assert batch_bytes(plan) == batch_bytes(plan, 1), "a question has one, where nobody says"
    assert batch_bytes(plan, 4) - batch_bytes(without, 4) > 4 * 63 * MIB


def test_two_micro_batches_are_there_unpinned_and_all_pinned() -> None:
    """draw-87 lacked 0.4 GiB: a rehearsal makes both before it pins them."""
    one, two, eight = (
        batch_bytes(tiny_plan(micro_batch=2, effective_batch=2 * n)) for n in (1, 2, 8)
    )
    assert two == 2 * one
    assert one < (eight - two) // 6 + one // 2 < eight


def test_data_workers_make_and_keep_batches() -> None:
    none, one, two = (batch_bytes(tiny_plan(workers=n)) for n in (0, 1, 2))
    assert two - one == one - none > 0
