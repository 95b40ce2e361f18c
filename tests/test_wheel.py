"""What a user installs: the wheel, in an environment of its own, run from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IGNORED = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}
PACKAGES = ("advisor", "profiles", "studio", "trainer")
IN_TURN = """
import glob, json, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    picture = next(iter(glob.glob("data/ReasonSeg/val/*.jpg")), "")
    sys.argv = [script, *(picture if word == "PICTURE" else word for word in arguments)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{sys.argv} ended with {end.code}")
"""


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command run in `folder`; what it said, where it fails."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data-home")}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=clean, timeout=500,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build in the checkout would find an earlier one's files."""
    folder = tmp_path_factory.mktemp("build")
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "src" / name, ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "src" / name)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps",
         "--no-index", "-w", folder, folder / "src"], folder)  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the installed commands.

    The environment borrows this one's libraries. A `.pth` file of the borrowed folder is not
    followed, so the checkout, which is installed there as editable, stays out of reach.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    run([sys.executable, "-m", "pip", "-q", f"--python={Path(paths['scripts']) / 'python'}",
         "install", "--no-deps", "--no-index", wheel], folder)  # fmt: skip
    return Path(paths["scripts"])


def test_every_file_that_the_packages_read_is_in_the_wheel(wheel: Path) -> None:
    there = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not IGNORED.intersection(path.parts) and path.name != "ruff.toml"
    }
    assert len(there) > 80
    assert there <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_readme_works_from_an_installed_wheel(commands: Path, tmp_path: Path) -> None:
    """The commands of README's sections, in their order, with data that `synthesise` makes."""
    where = run([commands / "python", "-c", "import profiles; print(profiles.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(commands.parent)
    advise, train, segment = (commands / f"lisa-{name}" for name in ("advise", "train", "segment"))
    assert "FITS" in run([advise, "--vram", "8GiB"], tmp_path)
    run([advise, "--gpu", "RTX 3060 12GB"], tmp_path)
    run([advise, "--model", "7b", "--vram", "8GiB", "--save", "7b.json"], tmp_path)
    assert "FITS" in run([advise, "forecast", "7b.json", "--vram", "8GiB"], tmp_path)
    run([advise, "check", "7b.json", "--vram", "8GiB"], tmp_path)
    run([advise, "table", "--source", "seed"], tmp_path)

    for program in (train, segment):
        assert program.name in run([program, "--version"], tmp_path)
    # The scripts, one after the other in one process: each would import torch anew.
    asked = [
        [train, "synthesise", "data", "--train", "4", "--val", "2"],
        [train, "--check-data", "data"],
        [train, "--auto", "--data-dir", "data", "--output-dir", "run", "--set",
         "schedule.epochs=1"],
        [train, "evaluate", "run", "--data-dir", "data", "--split", "val"],
        [train, "export", "run", "exported"],
        [segment, "PICTURE", "Where is the largest one?", "--run", "run"],
    ]  # fmt: skip
    words = json.dumps([[str(word) for word in command] for command in asked])
    run([commands / "python", "-P", "-c", IN_TURN, words], tmp_path)
