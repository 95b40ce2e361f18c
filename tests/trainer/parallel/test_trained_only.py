"""Frozen weights stay where they are: processes exchange what is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.conftest import PHOTOS, tiny_plan
from tests.group import together
from trainer.data.formats.reasonseg import read_split
from trainer.reporter import Reporter
from trainer.run.run import Run

QUIET = Reporter(lambda text: None, lambda what, done, total: None)


def sends_no_frozen_tensor(base: Path) -> None:
    """Both packed weights on the card and those in host memory are none of DDP's business."""
    plan = tiny_plan(processes=2, micro_batch=1, quantization="nf4", checkpointed_layers=4,
                     host_layers=2, host_embeddings=True)  # fmt: skip
    data = read_split(PHOTOS, "train")[:2], read_split(PHOTOS, "val", 1)
    wrapped = Run(plan, *data, base, base / "cache", QUIET).wrapped
    assert [value for _, value in wrapped.module.named_buffers()], "NF4 has buffers"
    assert not wrapped.modules_buffers
    known = wrapped._module_parameters
    assert known and all(value.requires_grad for value in known)


def test_frozen_tensors_are_not_exchanged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    codes = together(2, partial(sends_no_frozen_tensor, tmp_path), log)
    assert codes == [0, 0], log.read_text()
