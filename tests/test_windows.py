"""What of a Windows can be tried elsewhere: this project's own code without a Unix's modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from trainer.run.checkpoint import load_state
from trainer.run.folder import STATE

WINDOWS = Path(__file__).with_name("windows")


def on_windows(module: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A command as a child that sees a Windows."""
    path = os.pathsep.join((str(WINDOWS), str(WINDOWS.parents[1])))
    environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(home)}
    return subprocess.run([sys.executable, "-m", module, *arguments], env=environment, cwd=home,
                          capture_output=True, text=True, check=False)  # fmt: skip


def test_advice_needs_no_module_of_a_unix(tmp_path: Path) -> None:
    done = on_windows("advisor.cli", "--vram", "12GiB", "--json", home=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "FITS", done.stderr
    done = on_windows("advisor.cli", "--vram", "12GiB", "--os", "mac", home=tmp_path)
    assert done.returncode == 2 and "give linux or windows" in done.stderr


def test_a_folder_is_written_whole_there(tmp_path: Path) -> None:
    """A file that is open to be read cannot be forced to the disk."""
    few = ("--train", "1", "--val", "1", "--test", "0")
    done = on_windows("trainer.cli", "synthesise", "data", *few, home=tmp_path)
    assert done.returncode == 0 and not list(tmp_path.rglob(".*")), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_resumed_run_maps_no_file_of_the_checkpoint(tmp_path: Path) -> None:
    """Windows moves and deletes none, so the next saves would fail; here one kept its room."""
    (tmp_path / "state.json").write_text('{"a": {"tensor": "a"}}')
    (tmp_path / STATE).write_bytes(save({"a": torch.ones(9)}))
    state = load_state(tmp_path)
    assert state["a"].sum() == 9
    assert str(tmp_path / STATE) not in Path("/proc/self/maps").read_text()
