"""Tensors that have shapes but no memory: torch's FakeTensorMode, and batches of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from profiles.plan import Plan
from trainer.batch import Batch


@contextmanager
def fake_tensors(mode: FakeTensorMode | None = None) -> Iterator[FakeTensorMode]:
    """Tensors of shapes alone, without the warnings of libraries that look at them."""
    with warnings.catch_warnings(), mode or FakeTensorMode(allow_non_fake_inputs=True) as entered:
        warnings.simplefilter("ignore")
        yield entered


class _OnHost(Batch):
    """A batch that takes memory of its own when it is sent to the card."""

    def to(self, device: torch.device) -> Batch:
        return self.each(lambda t: t.clone() if isinstance(t, FakeTensor) else t)


def faked(batch: Batch, plan: Plan, mode: FakeTensorMode) -> _OnHost:
    """A batch without values, except whole numbers that are read, such as a picture's size."""
    faked = batch.each(mode.from_tensor)
    for encoder, facts in plan.profile.encoders.items():
        faked.inputs[encoder] |= {name: batch.inputs[encoder][name] for name in facts.numbers}
    return _OnHost(**vars(faked))
