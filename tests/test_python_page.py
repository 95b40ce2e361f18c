"""docs/python.md is run as it stands, one block after the other."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PHOTOS, ROOT
from trainer.answer.train import train
from trainer.run.folder import is_complete
from trainer.run.resume import resumable

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


def test_the_pages_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsals_here: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    Path("data").symlink_to(PHOTOS)
    names: dict[str, Any] = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        assert len(block.splitlines()) <= 10
        exec(block, names)
    assert names["advice"].verdict == "FITS" and names["advice"].plan.lora.rank == 16
    assert names["found"].verdict == "UNKNOWN", "no card was named"
    assert sum(names["found"].live_at_peak.values()) > 0
    assert names["summary"]["steps"] == 1 and names["summary"]["warnings"] == []
    run = Path("run")
    assert is_complete(run) and resumable(run, print) == run / "last"
    assert names["answer"].masks.dtype == np.bool_
    # what bitsandbytes says on some CPUs: quiet in a program, too, as in the commands
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    with pytest.raises(FileExistsError, match="runs are not mixed"):
        train(names["plan"], Path("data"), run)
